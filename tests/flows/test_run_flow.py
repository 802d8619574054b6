"""Tests of waiting until the server has recorded all task runs of a flow run."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import run_flow
from flows.run_flow import wait_for_records

FLOW_RUN = uuid.uuid4()
FINAL = {"CANCELLED", "COMPLETED", "CRASHED", "FAILED"}


@contextmanager
def recording_server(counts):
    """Serve the counts (final, all) of task runs one after another, the last one for ever."""
    left = list(counts)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)  # a server without protection against forged requests

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/task_runs/count"
            assert sent["flow_runs"]["id"]["any_"] == [str(FLOW_RUN)]
            state = sent["task_runs"].get("state")
            final, count = left[0]
            if state is None and len(left) > 1:  # the second request of a pair
                left.pop(0)
            if state is not None:
                assert set(state["type"]["any_"]) == FINAL
            body = json.dumps(count if state is None else final).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            yield left
    finally:
        server.shutdown()
        server.server_close()


class Clock:
    """Clock that only sleeping moves on, so that a loaded machine changes no result."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(run_flow, "RECORD_LIMIT_S", 1.0)
    monkeypatch.setattr(run_flow, "QUIET_S", 0.2)
    monkeypatch.setattr(run_flow, "time", Clock())


def test_wait_for_records_goes_on_as_long_as_the_server_records():
    """The ten looks take three seconds, and the limit is one second without a new record."""
    with recording_server([(done, 10) for done in range(1, 11)]) as left:
        assert wait_for_records(FLOW_RUN) == 10
        assert left == [(10, 10)]


def test_wait_for_records_goes_on_as_long_as_events_are_sent():
    """The server is quiet between its second and its third answer, and further events follow."""
    answers = iter([True] * 4 + [False] * 100)
    with recording_server([(2, 2), (2, 2), (2, 2), (4, 4)]) as left:
        assert wait_for_records(FLOW_RUN, lambda: next(answers)) == 4
        assert left == [(4, 4)]
    with recording_server([(2, 2)]):  # events that are never sent do not keep it for ever
        assert wait_for_records(FLOW_RUN, lambda: True) == 2


def test_wait_for_records_gives_up_if_nothing_new_is_recorded():
    with recording_server([(3, 5)]):
        assert wait_for_records(FLOW_RUN) == 5
