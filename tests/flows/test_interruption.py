"""Tests that signals, a lost server and a cancellation stop the flow within a time limit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from http_servers import http_server
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from tiers import rest_slow

from flows import interruption, run_lock
from flows.interruption import FlowWatch
from infra.stack import free_ports
from tasks.stopping import requested_stop, stoppable

RUN = uuid.uuid4()
URL = "http://127.0.0.1:1/api"


def server(ended):
    return SimpleNamespace(process=SimpleNamespace(poll=lambda: ended, terminate=lambda: None),
                           log="server.log")  # fmt: skip


def until(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polling, bounded by the deadline
    return condition()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(interruption, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(interruption, "POLL_EVERY_S", 0.05)
    with stoppable():
        yield


@pytest.fixture
def ends(monkeypatch):
    """Collect the exit codes with which the process would have ended."""
    codes = []
    monkeypatch.setattr(interruption, "end_at_once", codes.append)
    return codes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_flow_watch_first_signal_requests_a_stop_and_the_second_ends(ends, capfd, number, code):
    before = signal.getsignal(number)
    with FlowWatch(URL) as flow:
        flow.begin(RUN)
        os.kill(os.getpid(), number)
        stop = until(requested_stop)
        assert (stop.exit_code, stop.cancels, stop.waits) == (code, True, True)
        assert ends == []
        said = capfd.readouterr().err
        assert "Stopping after the units in progress, within 60 s; the same command goes" in said
        os.kill(os.getpid(), number)
        until(lambda: ends)
    assert ends == [code]
    assert signal.getsignal(number) == before


def test_flow_watch_ends_the_process_after_the_limit(ends, monkeypatch, capfd):
    """Before that, it records in Prefect that the flow run was cancelled."""
    monkeypatch.setattr(interruption, "UNIT_LIMIT_S", 0.0)
    recorded = []
    monkeypatch.setattr(run_lock, "record_stop", lambda *given: recorded.append((given, [*ends])))
    with FlowWatch(URL) as flow:
        flow.begin(RUN)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: ends)
    assert set(ends) == {130}
    assert "the next start repeats them" in capfd.readouterr().err
    (flow_runs, stop), ended_before = recorded[0]
    assert (flow_runs, stop.cancels, ended_before) == ([RUN], True, [])


def test_flow_watch_a_server_process_that_ended(ends, capfd):
    with FlowWatch("http://me:word@127.0.0.1:1/api", server(ended=-9)):
        stop = until(requested_stop)
    assert (stop.exit_code, stop.cancels, stop.waits) == (3, False, False)
    said = capfd.readouterr().err
    assert "http://127.0.0.1:1/api has ended" in said
    assert "server.log" in said
    assert said.count("\n") == 2  # one sentence, after the end of a progress bar


def test_flow_watch_a_server_that_answers_no_more(ends, monkeypatch, capfd):
    monkeypatch.setattr(interruption, "SILENCE_LIMIT_S", 0.2)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    with temporary_settings({PREFECT_API_URL: url}), FlowWatch(url) as flow:
        flow.begin(RUN)
        assert until(requested_stop).exit_code == 3
    assert "does not answer" in capfd.readouterr().err


def test_flow_watch_waits_longer_for_a_server_that_is_busy(ends, monkeypatch, capfd):
    """It accepts requests and answers none, until a time limit of its own."""
    monkeypatch.setattr(interruption, "POLL_EVERY_S", 0.1)
    monkeypatch.setattr(interruption, "ANSWER_LIMIT_S", 0.1)
    monkeypatch.setattr(interruption, "SILENCE_LIMIT_S", 0.2)
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as busy:
        busy.settimeout(60)
        url = f"http://127.0.0.1:{busy.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}), FlowWatch(url) as flow:
            flow.begin(RUN)
            begun, late = time.monotonic(), 0
            while late < 3:  # requests after the limit for a server that is not there
                asked.append(busy.accept())
                late += time.monotonic() - begun > 0.5
            assert requested_stop() is None
            monkeypatch.setattr(interruption, "BUSY_LIMIT_S", 0.3)
            assert until(requested_stop).exit_code == 3
    assert "does not answer" in capfd.readouterr().err


def status_error(status):
    response = httpx.Response(status, request=httpx.Request("GET", URL))
    return PrefectHTTPStatusError.from_httpx_error(
        httpx.HTTPStatusError("refused", request=response.request, response=response)
    )


@pytest.mark.parametrize(
    "signs",
    [[httpx.ReadTimeout("late")] * 5, [status_error(code) for code in (429, 500, 502, 503, 504)]],
)
def test_flow_watch_counts_a_servers_absence_from_its_last_sign_of_life(ends, monkeypatch, signs):
    """Each request takes 30 s of a clock that only requests move: five answers are late or error
    statuses, so that the server is alive after 150 s; then it refuses, twice, which is 60 s
    without it."""
    errors = [*signs, *[httpx.ConnectError("refused")] * 9]
    asked, clock = [], SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    @contextmanager
    def client(**_):
        if requested_stop() is None:
            clock.now += 30.0
            asked.append(errors[len(asked)])
        raise asked[-1]
        yield

    monkeypatch.setattr(interruption, "POLL_EVERY_S", 0.0)
    monkeypatch.setattr(interruption, "get_client", client)
    monkeypatch.setattr(interruption, "time", clock)
    with FlowWatch("http://127.0.0.1:9/api") as flow:
        flow.begin(RUN)
        assert until(requested_stop).exit_code == 3
    assert len(asked) == 7


def test_flow_watch_keeps_its_client_for_all_requests(ends, monkeypatch):
    """A client reads the certificates of all authorities, which takes longer than a request."""
    opened, asked = [], []
    running = SimpleNamespace(state=SimpleNamespace(type="RUNNING"))

    def read(_):
        asked.append(None)
        if len(asked) == 2:
            raise httpx.ConnectError("refused")
        return running

    @contextmanager
    def client(**_):
        opened.append("opened")
        yield SimpleNamespace(read_flow_run=read)
        opened.append("closed")

    monkeypatch.setattr(interruption, "get_client", client)
    with FlowWatch(URL) as flow:
        flow.begin(RUN)
        until(lambda: len(asked) > 4)
    until(lambda: len(opened) == 2)
    assert opened == ["opened", "closed"]
    assert requested_stop() is None


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
def test_flow_watch_a_cancellation_in_prefect(ends, capfd, state):
    answer = {"id": str(RUN), "flow_id": str(RUN), "name": "study x", "state": {"type": state}}
    with http_server(200, json.dumps(answer)) as port:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url}), FlowWatch(url) as flow:
            flow.begin(RUN)
            stop = until(requested_stop)
    assert stop.is_cancellation
    assert stop.exit_code == 130
    assert f"flow run {RUN} was cancelled in Prefect" in capfd.readouterr().err


def test_flow_watch_lets_a_running_flow_run(ends):
    answer = {"id": str(RUN), "flow_id": str(RUN), "name": "x", "state": {"type": "RUNNING"}}
    with http_server(200, json.dumps(answer)) as port:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url}), FlowWatch(url, server(None)) as flow:
            flow.begin(RUN)
            assert flow.lost_server(RuntimeError("of the flow")) is None
            assert flow.lost_server(KeyError("of the flow")) is None
    assert requested_stop() is None
    assert ends == []


HANGING = """
import sys, threading, time
from flows import interruption, run_lock

interruption.ANNOUNCE_EXIT_S, interruption.EXIT_LIMIT_S = 0.1, 1.5
interruption.flow_ran.set()
hanging = threading.Thread(target=time.sleep, args=(600,))
hanging.start()
interruption.limit_exit(5)
if sys.argv[1] == "goes on":
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()  # the limit is over
    print("still here", flush=True)
"""


@pytest.mark.parametrize(
    ("then", "output"), rest_slow([("ends", ""), ("goes on", "still here\n")], (0,))
)
def test_limit_exit_ends_a_process_that_waits_for_threads_only(then, output):
    """A process is ended only if its main thread has finished, as pytest's has not."""
    command = [sys.executable, "-c", HANGING, then]
    if then == "ends":
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 5
        assert done.stdout == output
        assert done.stderr.strip() == "Waiting for the threads of Prefect to end."
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == output
        process.kill()
