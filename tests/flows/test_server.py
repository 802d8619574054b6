"""Tests of the choice of the Prefect server that a command uses."""

import contextlib
import json
import subprocess
import sys

import prefect
import pytest
from http_servers import http_server
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_UI_URL,
    Settings,
    temporary_settings,
)

import flows.server
from flows.run_flow import QUIET_S
from flows.server import (
    RECORDING,
    WAITING,
    LocalServer,
    prefect_server,
    server_in_advance,
    start_server,
    ui_url,
)
from infra import event_queue
from infra.stack import free_ports
from ldmprobe_core.errors import RunError, UserError

OURS = json.dumps(prefect.__version__)


@pytest.fixture
def own_server(monkeypatch):
    """Replace the start of a new server, so that the tests only see which server is chosen."""

    @contextlib.contextmanager
    def start():
        yield "http://127.0.0.1:1/own"

    monkeypatch.setattr(flows.server, "start_server", start)
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def test_recording_has_settings_that_prefect_knows(monkeypatch):
    for name, value in (RECORDING | WAITING).items():
        monkeypatch.setenv(name, value)
    server = Settings().server
    recorder = server.services.task_run_recorder
    assert recorder.batch_size == 100
    assert recorder.flush_interval == 1 < QUIET_S
    assert server.services.event_persister.batch_size == 200
    assert server.events.messaging_broker == event_queue.__name__


def used(port, monkeypatch):
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(port))
    with prefect_server() as url:
        assert PREFECT_API_URL.value() == url
        return url


def test_prefect_server_uses_the_one_on_the_usual_port(own_server, monkeypatch, capfd):
    with http_server(200, OURS) as port:
        assert used(port, monkeypatch) == f"http://127.0.0.1:{port}/api"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, "{}", "refuses the credentials"),
        (200, "<html></html>", "not a Prefect server"),
        (200, '"2.20.0"', "version 2.20.0"),
        (500, "{}", "500"),
    ],
)
def test_prefect_server_starts_its_own_beside_one_that_it_cannot_use(
    own_server, monkeypatch, capfd, status, body, word
):
    with http_server(status, body) as port:
        assert used(port, monkeypatch) == "http://127.0.0.1:1/own"
    (note,) = capfd.readouterr().err.splitlines()
    assert word in note
    assert "this run starts a server of its own" in note


def test_prefect_server_starts_its_own_where_nothing_listens(own_server, monkeypatch, capfd):
    (port,) = free_ports(1)
    assert used(port, monkeypatch) == "http://127.0.0.1:1/own"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, "{}", "refuses the credentials.*Fix: set PREFECT_API_AUTH_STRING"),
        (200, "[]", "not a Prefect server"),
        (200, '"2.20.0"', "version 2.20.0"),
    ],
)
def test_prefect_server_refuses_a_configured_one_that_it_cannot_use(status, body, word):
    with http_server(status, body) as port:
        url = f"http://user:word@127.0.0.1:{port}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(UserError, match=rf"^PREFECT_API_URL is 'http://127.*{word}"),
            prefect_server(),
        ):
            pass


class StartedError(Exception):
    """End of a start of a server, which a test needs no more of."""


@pytest.fixture
def started(monkeypatch):
    """Record the command and the environment with which a server would be started."""
    found = []

    def popen(command, env, **_):
        found.append((command, env))
        raise StartedError

    monkeypatch.setattr(flows.server.subprocess, "Popen", popen)
    yield found
    monkeypatch.undo()


def test_start_server_imports_nothing_from_the_current_folder(started, tmp_path, monkeypatch):
    with pytest.raises(StartedError), start_server():
        pass
    ((command, environment),) = started
    assert command[:3] == [sys.executable, "-m", "prefect"]
    monkeypatch.undo()
    (tmp_path / "of_the_user.py").write_text("print('imported')")
    words = [sys.executable, "-m", "of_the_user"]
    here = {name: value for name, value in environment.items() if name != "PYTHONSAFEPATH"}
    assert subprocess.check_output(words, cwd=tmp_path, env=here) == b"imported\n"
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True)
    assert b"No module named of_the_user" in done.stderr


@pytest.mark.parametrize(("ours", "fits"), [(None, False), ("me:other", False), ("me:word", True)])
def test_start_server_refuses_a_login_that_the_command_lacks(started, ours, fits):
    settings = {PREFECT_SERVER_API_AUTH_STRING: "me:word", PREFECT_API_AUTH_STRING: ours}
    with (
        temporary_settings(settings),
        pytest.raises(StartedError if fits else UserError) as error,
        start_server(),
    ):
        pass
    if not fits:
        assert str(error.value).startswith("PREFECT_SERVER_API_AUTH_STRING: ")
        assert "word" not in str(error.value).replace("user:password", "")


@pytest.mark.parametrize("shown", [None, "https://me:secret@prefect.example/ui"])
def test_ui_url_has_no_password(shown):
    api = "http://admin:secret@host:4200/api"
    with temporary_settings({PREFECT_API_URL: api, PREFECT_UI_URL: shown}):
        found = ui_url(api)
    assert found == ("https://prefect.example/ui" if shown else "http://host:4200")


def test_prefect_server_refuses_a_configured_one_that_is_down():
    (port,) = free_ports(1)
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
        pytest.raises(UserError, match=r"does not answer \(ConnectError\)\. Fix: start"),
        prefect_server(),
    ):
        pass


@pytest.mark.parametrize("where", ["configured", "usual port"])
def test_server_in_advance_starts_none_where_there_may_be_one(started, monkeypatch, where):
    with http_server(200, OURS) as port:
        url = f"http://127.0.0.1:{port}/api"
        monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(port))
        if where == "configured":
            monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(*free_ports(1)))
        with (
            temporary_settings({PREFECT_API_URL: url if where == "configured" else None}),
            server_in_advance() as server,
        ):
            assert server is None
    assert not started


def test_server_in_advance_starts_one_where_nothing_listens(started, monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(port))
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(StartedError),
        server_in_advance(),
    ):
        pass
    assert started[0][0][-1] == str(port)


def test_server_in_advance_ends_a_server_that_nothing_waits_for(tmp_path, monkeypatch):
    """As where the study turns out to be unusable while the server starts."""
    launch, processes = subprocess.Popen, []

    def popen(command, **options):
        processes.append(launch([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return processes[-1]

    monkeypatch.setattr(flows.server.subprocess, "Popen", popen)
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(*free_ports(1)))
    with (
        temporary_settings({PREFECT_API_URL: None, PREFECT_HOME: tmp_path}),
        contextlib.suppress(UserError),
        server_in_advance() as server,
    ):
        assert server.process is processes[0]
        assert flows.server.started_servers == [server]
        raise UserError("study: it is unusable. Fix: none")
    assert processes[0].poll() is not None
    assert flows.server.started_servers == []


def test_prefect_server_waits_for_the_one_that_was_started_in_advance(own_server, tmp_path):
    with http_server(200, "true") as port, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat:
        url = f"http://127.0.0.1:{port}/api"
        with prefect_server(in_advance=LocalServer(cat, tmp_path / "log", url)) as used_url:
            assert used_url == url == PREFECT_API_URL.value()
    ended = LocalServer(cat, tmp_path / "log", url)
    with pytest.raises(RunError, match=r"did not start; its log"), prefect_server(in_advance=ended):
        pass
