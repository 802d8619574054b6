"""Tests that the services of the stack and of docker-compose.yml are the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import yaml

from flows.server import RECORDING, WAITING
from infra import services
from infra.services import Platform
from infra.stack import prepare

ROOT = Path(__file__).parents[2]

FILLED = {"POSTGRES_PASSWORD": "p", "PREFECT_AUTH": "admin:p", "S3_KEY": "k", "S3_SECRET": "s"}


@pytest.fixture(scope="module")
def compose():
    """Return docker-compose.yml with its variables replaced, as Docker Compose does it."""
    text = (ROOT / "docker-compose.yml").read_text()
    known = {**FILLED, "LDMPROBE_GPUS": "1"}
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: known.get(m[1], m[2]), text)
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda m: known[m[1]], text)
    assert "${" not in text
    return yaml.safe_load(text)["services"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Return the services that `make stack` starts, by name."""
    ports = services.PUBLIC_PORTS | {
        name: 20_000 + i for i, name in enumerate(services.INNER_PORTS)
    }
    secrets = {"database": "p", "s3-key": "k", "s3-secret": "s"}
    platform = Platform(tmp_path_factory.mktemp("stack"), ports, secrets, workers=2)
    with mock.patch.object(services, "postgres_program", lambda name: name):
        return {service.name: service for service in platform.services()}


def test_every_prefect_server_records_task_runs_in_the_same_batches(compose, local):
    values = yaml.safe_load((ROOT / "infra/kubernetes/prefect-server-values.yaml").read_text())
    in_cluster = {entry["name"]: entry["value"] for entry in values["global"]["prefect"]["env"]}
    for environment in (
        local["prefect-server"].environment,
        compose["prefect-server"]["environment"],
        in_cluster,
    ):
        assert RECORDING.items() <= environment.items()
        if environment is not in_cluster:  # its image does not have this package
            assert WAITING.items() <= environment.items()


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2, 0", ["2", "0"]),
        ("1,-1,0", ["1"]),
        (
            "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1",
            ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "1"],
        ),
        ("MIG-4bd87a1c-ee83-5b21-a9ef-0b1b2d4d2a52", ["MIG-4bd87a1c-ee83-5b21-a9ef-0b1b2d4d2a52"]),
    ],
)
def test_each_visible_gpu_has_a_dask_worker(monkeypatch, tmp_path, visible, gpus):
    """A GPU can be named by its UUID, and the entries after an invalid one do not count."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    platform = prepare(tmp_path, workers=1, anywhere=True)
    workers = [service for service in services.dask(platform) if "worker" in service.name]
    named = [worker.environment.get("CUDA_VISIBLE_DEVICES") for worker in workers]
    assert named == (gpus or [None])
    resource = "GPU=1" if gpus else "CPU=1"
    assert all(resource in worker.command for worker in workers)


def compose_accepts(folder: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env_file = folder / "env"
    example = (ROOT / ".env.example").read_text()
    for name, value in values.items():
        example = re.sub(rf"(?m)^{name}=.*$", f"{name}={value}", example)
    env_file.write_text(example)
    return subprocess.run(
        ["docker-compose", "--env-file", str(env_file), "-f", str(ROOT / "docker-compose.yml"),
         "config"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(
    shutil.which("docker-compose") is None and "LDMPROBE_STACK_REQUIRED" not in os.environ,
    reason="needs docker-compose; .ci/run installs it and insists",
)
def test_compose_accepts_the_file_and_refuses_an_empty_secret(tmp_path):
    done = compose_accepts(tmp_path, FILLED)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"]["prefect-server"]["ports"] == [
        "127.0.0.1:4200:4200/tcp"
    ]
    for name in FILLED:
        refused = compose_accepts(tmp_path, FILLED | {name: ""})
        assert refused.returncode != 0
        assert f"set {name} in .env" in refused.stderr


def test_compose_has_the_services_of_the_stack(compose, local):
    plain = {name.rstrip("-0123456789") for name in local}
    assert plain == {name.removesuffix("-gpu") for name in compose}
    for name, service in compose.items():
        # A Dask worker that lost its scheduler ends with 0, and so do services at a reboot.
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert re.fullmatch(r"\d+g", service["mem_limit"]), name
        if not name.startswith("dask-worker"):  # the scheduler knows whether its workers live
            assert "healthcheck" in service, name


def seconds(text: str) -> int:
    assert re.fullmatch(r"\d+s", text), text
    return int(text[:-1])


def test_a_slow_start_is_not_taken_for_a_failure(compose):
    """On a loaded machine a service needs minutes, and `up` gives up on one that is unhealthy."""
    checked = {name: s["healthcheck"] for name, s in compose.items() if "healthcheck" in s}
    assert len(checked) == 5
    for name, check in checked.items():
        assert seconds(check["start_period"]) >= 300, name


def test_the_health_of_the_database_is_asked_by_tcp(compose):
    """The temporary server that creates the database answers on its socket alone."""
    program, *words = compose["postgres"]["healthcheck"]["test"][1:]
    assert program == "pg_isready"
    assert words[words.index("-h") + 1] == "127.0.0.1"


def test_the_example_of_the_secrets_says_how_to_copy_and_fill_it():
    example = (ROOT / ".env.example").read_text()
    text = re.sub(r"\n# ?", " ", example)
    assert "install -m 600 .env.example .env" in text
    # The password goes into postgresql+asyncpg://prefect:PASSWORD@postgres unescaped.
    assert "PostgreSQL becomes part of a URL: letters and digits only" in text
    for name in FILLED:
        assert re.search(rf"(?m)^{name}=$", example), name
    for page in ("docs/operations.md", "docker-compose.yml"):
        assert "install -m 600 .env.example .env" in (ROOT / page).read_text(), page


def flags(words: list[str]) -> dict[str, str]:
    """Return the options of a command without hosts, ports and folders, which differ by machine."""
    placed = {"host", "port", "dir", "ip", "ip.bind", "name", "dashboard-address"}
    placed |= {"local-directory", "s3.port", "master.port", "volume.port", "filer.port", "D", "h"}
    placed |= {"p", "c"}
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-") and word != "-m":
            key, equals, value = word.lstrip("-").partition("=")
            if not equals and not following.startswith("-"):
                value = following
            if key not in placed:
                found[key] = value
    return found


@pytest.mark.parametrize("name", ["prefect-server", "seaweedfs", "dask-scheduler", "dask-worker",
                                  "prefect-worker"])  # fmt: skip
def test_compose_commands_equal_those_of_the_services(compose, local, name):
    command = compose[name]["command"]
    if command.startswith("sh -c"):
        command = command.split("exec ")[1].rstrip('"')
    words, ours = command.split(), list(local.get(name, local.get(f"{name}-0")).command)
    program = ours[2] if ours[1] == "-m" else Path(ours[0]).name
    assert program in words[:3]
    assert flags(words) == flags(ours)


@pytest.mark.parametrize("name", ["prefect-server", "seaweedfs", "dask-worker", "prefect-worker"])
def test_compose_environments_equal_those_of_the_services(compose, local, name):
    theirs = compose[name]["environment"]
    ours = local.get(name, local.get(f"{name}-0")).environment
    only_there = {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"}  # beyond loopback
    only_here = {"PREFECT_HOME"}  # the image has it
    assert theirs.keys() - only_there == ours.keys() - only_here
    placed = {"PREFECT_API_URL", "PREFECT_UI_API_URL", "AWS_ENDPOINT_URL", "LDMPROBE_HOME",
              "LDMPROBE_DASK",
              "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_WORKER_WEBSERVER_PORT"}  # fmt: skip
    for key in (theirs.keys() & ours.keys()) - placed:
        assert theirs[key] == ours[key], key
    if name == "prefect-server":
        url = ours["PREFECT_API_DATABASE_CONNECTION_URL"]
        container = theirs["PREFECT_API_DATABASE_CONNECTION_URL"]
        assert re.sub(r"@[^/]+", "", container) == re.sub(r"@[^/]+", "", url)


def test_compose_publishes_ports_on_loopback_and_never_dask(compose):
    published = {name: service["ports"] for name, service in compose.items() if "ports" in service}
    ports = services.PUBLIC_PORTS
    assert published == {
        "prefect-server": [f"127.0.0.1:{ports['prefect-server']}:{ports['prefect-server']}"],
        "seaweedfs": [f"127.0.0.1:{ports['s3']}:{ports['s3']}"],
        "dask-scheduler": [f"127.0.0.1:{ports['dask-dashboard']}:{ports['dask-dashboard']}"],
    }


def test_compose_containers_are_not_root(compose):
    for name, service in compose.items():
        if name != "postgres":  # whose image drops root itself
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
    lines = (ROOT / "infra/docker/Dockerfile").read_text().splitlines()
    base, *targets = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+ AS ldmprobe", base)
    assert targets == ["FROM ldmprobe AS gpu", "FROM ldmprobe AS cpu"]
    assert [line for line in lines if line.startswith("USER ")] == ["USER ldmprobe"]
    for image in {s["image"] for s in compose.values()} - {
        "ldmprobe:latest",
        "ldmprobe-gpu:latest",
    }:
        assert re.search(r":\d+\.\d+", image), image
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert "!.env" not in ignored
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
