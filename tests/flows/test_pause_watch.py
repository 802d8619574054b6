"""Tests that a flow obeys a pause, a suspension and a resumption in Prefect."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from http_servers import http_server
from prefect import flow, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Pause
from prefect.futures import PrefectConcurrentFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Failed, Paused, Running, Suspended

import tasks.progress
from flows import pause_watch, run_lock
from flows.pause_watch import PauseWatch, obey, with_pauses
from flows.run_lock import hold_run
from infra.setup import crash_automation
from ldmprobe_core.storage.lease import hold_lease
from tasks.progress import follow
from tasks.stopping import (
    Stop,
    StoppedError,
    is_paused,
    pause,
    request_stop,
    requested_stop,
    require_not_stopped,
    resume,
    stoppable,
)

RUN, DEPLOYMENT = uuid.uuid4(), uuid.uuid4()


@pytest.fixture(autouse=True)
def no_request():
    with stoppable():
        yield


def flow_run(state, deployment=None):
    return FlowRun(id=RUN, flow_id=uuid.uuid4(), name="x", state=state, deployment_id=deployment)


@pytest.mark.parametrize("deployment", [None, DEPLOYMENT])
def test_obey_a_pause_and_its_end(capfd, deployment):
    obey(flow_run(Running(), deployment))
    assert not is_paused()
    for _ in range(2):
        obey(flow_run(Paused(timeout_seconds=60), deployment))
        assert is_paused()
    obey(flow_run(Running(), deployment))
    assert not is_paused()
    assert requested_stop() is None
    said = capfd.readouterr().err.split("\n\n")
    assert [line.strip() for line in said] == [
        f"flow run {RUN} is paused in Prefect: no other unit of work starts until it is resumed "
        "there.",
        f"flow run {RUN} was resumed in Prefect.",
    ]


def test_obey_a_suspension_of_a_deployed_flow_run():
    obey(flow_run(Suspended(timeout_seconds=60), DEPLOYMENT))
    stop = requested_stop()
    assert (stop.suspends, stop.cancels, stop.waits) == (True, False, True)
    assert not is_paused()


def test_obey_a_suspension_that_prefect_cannot_end():
    """Prefect resumes a suspended flow run by its deployment, which a command's flow has not."""
    obey(flow_run(Suspended(timeout_seconds=60)))
    stop = requested_stop()
    assert (stop.suspends, stop.cancels, stop.is_cancellation) == (False, True, True)
    assert "resumes only runs of a deployment" in stop.message
    assert "the same command goes on" in stop.message


def test_obey_the_end_of_a_pause_without_resumption():
    """The server marks a flow run as failed that is not resumed before the pause expires."""
    obey(flow_run(Failed(message="of the flow itself")))
    assert requested_stop() is None
    obey(flow_run(Paused(timeout_seconds=60)))
    obey(flow_run(Cancelling()))  # of a command, `FlowWatch` handles it
    assert requested_stop() is None
    obey(flow_run(Failed(message="The flow was paused and never resumed.")))
    stop = requested_stop()
    assert (stop.cancels, stop.waits, stop.exit_code) == (False, True, 130)
    assert "was not resumed in time" in stop.message


def test_pause_watch_asks_the_server(monkeypatch):
    monkeypatch.setattr(pause_watch, "POLL_EVERY_S", 0.02)
    answer = flow_run(Paused(timeout_seconds=60)).model_dump_json()
    with http_server(200, answer) as port:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url}), PauseWatch(RUN):
            deadline = time.monotonic() + 60
            while not is_paused():
                assert time.monotonic() < deadline
                time.sleep(0.01)  # polling, bounded by the deadline


def test_pause_watch_keeps_its_client_for_all_requests(monkeypatch):
    opened, asked = [], []

    def read(_):
        asked.append(None)
        if len(asked) == 2:
            raise httpx.ConnectError("refused")
        return flow_run(Running())

    @contextmanager
    def client(**_):
        opened.append(None)
        yield SimpleNamespace(read_flow_run=read)

    monkeypatch.setattr(pause_watch, "POLL_EVERY_S", 0.01)
    monkeypatch.setattr(pause_watch, "get_client", client)
    with PauseWatch(RUN):
        deadline = time.monotonic() + 60
        while len(asked) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # polling, bounded by the deadline
    assert len(opened) == 1


@pytest.fixture
def no_artifacts(monkeypatch):
    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid.uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda *_, **__: None)


def test_with_pauses_carries_out_each_unit_once(no_artifacts):
    """Units in progress end during the pause, and the others start after it."""
    begun, release, done, at_pause = threading.Event(), threading.Event(), [], []

    def unit(number):
        begun.set()
        assert release.wait(60)
        done.append(number)

    def work():
        left = [number for number in range(5) if number not in done]
        futures = {
            str(number): PrefectConcurrentFuture(uuid.uuid4(), pool.submit(unit, number))
            for number in left
        }
        if len(left) == 5:
            assert begun.wait(60)
            pause("paused")
            threading.Timer(0.2, release.set).start()
        else:
            at_pause.append(is_paused())
        return follow("generate", futures)

    def resume_after_the_first():
        assert release.wait(60)
        while not done:
            time.sleep(0.01)  # polling, ended by the test's time limit
        time.sleep(0.5)  # units that do not obey the pause would end in this time
        at_pause.append(list(done))
        resume("resumed")

    with ThreadPoolExecutor(1) as pool:
        other = threading.Thread(target=resume_after_the_first)
        other.start()
        with_pauses(work)
        other.join()
    assert at_pause == [[0], False]
    assert done == [0, 1, 2, 3, 4]


def test_with_pauses_ends_with_a_stop(no_artifacts):
    pause("paused")
    threading.Timer(0.2, request_stop, [Stop("cancelled", 130)]).start()
    with ThreadPoolExecutor(1) as pool:
        future = PrefectConcurrentFuture(uuid.uuid4(), pool.submit(lambda: None))
        with pytest.raises(StoppedError, match="cancelled"):
            with_pauses(lambda: follow("generate", {"one": future}))


@pytest.mark.parametrize("noticed_by", ["watch", "engine"])
def test_hold_run_tells_prefect_of_a_suspension_and_frees_the_lease(
    prefect_api, tmp_path, monkeypatch, noticed_by
):
    """Its event is one that keeps the automation of `infra.setup` from taking it for a crash."""
    url, events, runs = str(tmp_path / "run"), [], []
    monkeypatch.setattr(run_lock, "emit_event", lambda *given: events.append(given))

    @flow
    def suspended():
        runs.append(runtime.flow_run.id)
        with hold_run(url):
            assert Path(f"{url}.lease").exists()
            if noticed_by == "engine":
                raise Pause("suspended", state=Suspended())
            request_stop(Stop("suspended", 130, cancels=False, suspends=True))
            require_not_stopped()

    with pytest.raises(Pause) as signal:
        suspended()
    assert signal.value.state.name == "Suspended"
    assert not Path(f"{url}.lease").exists()
    ((name, resource),) = events
    assert resource == {"prefect.resource.id": f"prefect.flow-run.{runs[0]}"}
    assert name in crash_automation(timedelta(seconds=600)).trigger.expect


def test_hold_run_waits_for_an_earlier_process_of_the_same_flow_run(prefect_api, tmp_path):
    """A resumed flow run can start before its suspended process has freed the lease."""
    url, held, order = str(tmp_path / "run"), threading.Event(), []

    def earlier(flow_run_id):
        with hold_lease(url, f"flow run {flow_run_id}"):
            held.set()
            time.sleep(0.5)  # the units in progress
            order.append("suspended")

    @flow
    def resumed():
        other = threading.Thread(target=earlier, args=(runtime.flow_run.id,))
        other.start()
        assert held.wait(60)
        with hold_run(url):
            order.append("resumed")
        other.join()

    resumed()
    assert order == ["suspended", "resumed"]
