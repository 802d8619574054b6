"""Tests of the command that starts a deployment with a study."""

from __future__ import annotations

import contextlib
import json
import uuid
from types import SimpleNamespace

import httpx
import prefect.client.orchestration
import pytest
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

import flows.server
from flows import cli
from flows.commands.submit import merged_execution
from infra.stack import free_ports
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.prompt_sets import tabletop_prompts

STACK = {"runner": "dask", "address": "tcp://127.0.0.1:8786"}


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ({}, STACK),
        ({"device": "cpu"}, {**STACK, "device": "cpu"}),
        ({"runner": "local", "workers": 3}, {"runner": "local", "workers": 3}),
        (
            {"runner": "dask", "address": "tcp://other:8786"},
            {"runner": "dask", "address": "tcp://other:8786"},
        ),
    ],
)
def test_merged_execution_keeps_the_workers_of_the_deployment(given, merged):
    assert merged_execution(given, STACK) == merged


class Client:
    """Prefect client that knows one deployment, and records the flow runs of it."""

    def __init__(self):
        self.started, self.refusal = [], None

    def __call__(self, sync_client):
        return contextlib.nullcontext(self)

    def read_deployment_by_name(self, name):
        if name != "study/process":
            raise ObjectNotFound(ValueError(name))
        parameters = {"study": {"name": "tabletop", "execution": STACK}, "store": "s3://runs"}
        return SimpleNamespace(id=uuid.UUID(int=1), parameters=parameters)

    def create_flow_run_from_deployment(self, deployment, parameters):
        if self.refusal is not None:
            raise self.refusal
        self.started.append(parameters)
        return SimpleNamespace(id=uuid.UUID(int=2), name="study mine")


@pytest.fixture
def client(monkeypatch):
    client = Client()

    @contextlib.contextmanager
    def server(may_start):
        assert not may_start
        yield "http://127.0.0.1:4200/api"

    monkeypatch.setattr(prefect.client.orchestration, "get_client", client)
    monkeypatch.setattr(flows.server, "prefect_server", server)
    return client


def test_submit_starts_the_deployment_with_the_study_and_its_own_workers(client, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsampling: {steps: 4}\nexecution: {device: cpu}\n")
    result = CliRunner().invoke(cli.app, ["submit", str(path)])
    assert result.exit_code == 0, result.output
    assert "Flow run study mine: http://127.0.0.1:4200/runs/flow-run/" in result.output
    (parameters,) = client.started
    assert "store" not in parameters
    study = parameters["study"]
    assert (study["name"], study["sampling"]["steps"]) == ("mine", 4)
    assert (study["execution"]["address"], study["execution"]["device"]) == (
        "tcp://127.0.0.1:8786", "cpu",
    )  # fmt: skip
    assert load_study(str(path)).execution.address is None


def test_submit_names_a_deployment_that_does_not_exist(client):
    result = CliRunner().invoke(cli.app, ["submit", "tabletop", "--deployment", "study/none"])
    assert isinstance(result.exception, UserError)
    assert "deployment: there is none of this name (study/none). Fix: list" in str(result.exception)


def test_submit_checks_the_environment_before_it_asks_a_server(client, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    result = CliRunner().invoke(cli.app, ["submit", "tabletop"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("TMPDIR: temporary files cannot be written")
    assert client.started == []


def test_submit_refuses_a_study_that_prefect_would_refuse(client, tmp_path):
    """It has fewer characters than the limit has bytes, but most are two bytes in UTF-8."""
    path = tmp_path / "large.yaml"
    items = [f"{caption} {'é' * 3_500}" for caption, _ in tabletop_prompts(60, 0)]
    path.write_text(json.dumps({"prompts": {"items": items}}))
    result = CliRunner().invoke(cli.app, ["submit", str(path)])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("prompts.items makes the study ")
    assert client.started == []


def answer(status, text):
    response = httpx.Response(status, text=text, request=httpx.Request("POST", "http://x"))
    return httpx.HTTPStatusError("refused", request=response.request, response=response)


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [
        (answer(422, "steps: too few"), UserError, "refuses the study (study/process: steps: too"),
        (answer(429, ""), RunError, "answers with HTTP status 429. Fix: look with `prefect flow"),
        (answer(503, "<html>"), RunError, "answers with HTTP status 503. Fix: look"),
        (httpx.ReadTimeout(""), RunError, "does not answer (ReadTimeout). Fix: look"),
    ],
)
def test_submit_tells_a_refused_study_from_a_busy_server(client, refusal, kind, message):
    client.refusal = refusal
    result = CliRunner().invoke(cli.app, ["submit", "tabletop"])
    assert type(result.exception) is kind
    assert message in str(result.exception)


def test_prefect_server_is_not_started_for_a_submission(monkeypatch):
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(free_ports(1)[0]))
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(UserError, match=r"PREFECT_API_URL is not set, and no server answers"),
        flows.server.prefect_server(may_start=False),
    ):
        pass
