"""Tests of waiting for the units of a stage, with failures and requests to stop."""

from __future__ import annotations

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.futures import PrefectConcurrentFuture

import tasks.progress
from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from tasks.progress import StageError, follow
from tasks.stopping import PausedError, Stop, StoppedError, request_stop, stoppable


def test_follow_raises_the_user_error_of_a_worker(prefect_api, monkeypatch):
    @flow
    def stage(error):
        @task
        def unit():
            raise error

        return follow("stage", {"one": unit.submit()})

    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid.uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda **_: None)
    with pytest.raises(UserError, match=r"^model.source 'x' has fingerprint"):
        stage(UserError("model.source 'x' has fingerprint a here"))
    with pytest.raises(StageError, match=r"1 of 1 units of stage failed.*one, ValueError: bad"):
        stage(ValueError("bad"))


@pytest.fixture(autouse=True)
def no_artifacts(monkeypatch):
    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda *_, **__: None)
    with stoppable():
        yield


def _futures(pool, functions):
    return {
        str(i): PrefectConcurrentFuture(uuid4(), pool.submit(function))
        for i, function in enumerate(functions)
    }


def test_follow_waits_for_the_units_in_progress_alone():
    begun, release, carried_out = threading.Event(), threading.Event(), []

    def unit():
        begun.set()
        assert release.wait(60)
        carried_out.append(1)

    with ThreadPoolExecutor(1) as pool:
        units = _futures(pool, [unit] * 5)
        assert begun.wait(60)
        request_stop(Stop("stop", 130))
        threading.Timer(0.3, release.set).start()
        with pytest.raises(StoppedError):
            follow("generate", units)
        assert carried_out == [1]


def test_follow_returns_the_largest_peak_of_the_units_that_were_carried_out():
    results = [
        {"seconds": 1.0, "peak": {"memory": 5}},
        {"seconds": 2.0, "peak": {"memory": 7, "GPU memory": 1}},
        {"seconds": 0.0},  # complete already
        {"seconds": 1.0, "peak": {"memory": 6}},
    ]
    with ThreadPoolExecutor(1) as pool:
        units = _futures(pool, [lambda r=result: r for result in results])
        assert follow("generate", units).peak == {"memory": 7, "GPU memory": 1}
        assert follow("generate", _futures(pool, [lambda: {"seconds": 0.0}])).peak == {}


def test_follow_does_not_wait_where_the_stop_does_not():
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        units = _futures(pool, [lambda: release.wait(60)] * 3)
        request_stop(Stop("lost", 3, waits=False))
        with pytest.raises(StoppedError):
            follow("generate", units)
        assert not any(future.wrapped_future.done() for future in units.values())
        release.set()


def test_follow_stops_when_a_stop_is_requested_after_the_last_unit():
    with ThreadPoolExecutor(1) as pool:
        units = _futures(pool, [lambda: request_stop(Stop("late", 130))])
        with pytest.raises(StoppedError):
            follow("generate", units)


def test_follow_tells_of_a_failed_unit_while_the_others_go_on(monkeypatch):
    told, lines, shown = threading.Event(), [], []

    def print_line(text):
        lines.append(text)
        told.set()

    def fail(number):
        raise OSError(28, f"No space left for {number}")

    monkeypatch.setattr(tasks.progress, "print_line", print_line)
    monkeypatch.setattr(tasks.progress, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(
        tasks.progress, "create_progress_artifact", lambda **given: shown.append(given) or uuid4()
    )
    functions = [lambda: fail(0), lambda: told.wait(60), lambda: fail(2)]
    with ThreadPoolExecutor(1) as pool, pytest.raises(StageError, match="2 of 3 units of generate"):
        follow("generate", _futures(pool, functions))
    assert told.is_set()
    assert lines == ["generate: 0 failed, OSError: [Errno 28] No space left for 0"]
    assert shown[-1]["description"].startswith("generate: 1 of 3, 2 failed, ")
    assert round(shown[-1]["progress"]) == 33


@pytest.mark.parametrize("error", [StoppedError("stopped", 130), PausedError("paused")])
def test_follow_prints_a_failure_but_no_unit_that_ends_for_a_stop_or_pause(monkeypatch, error):
    def fail(error):
        raise error

    lines = []
    monkeypatch.setattr(tasks.progress, "print_line", lines.append)
    monkeypatch.setattr(tasks.progress, "get_run_logger", lambda: logging.getLogger("test"))
    functions = [lambda: fail(error), lambda: fail(ValueError("bad")), lambda: fail(error)]
    with ThreadPoolExecutor(1) as pool, pytest.raises(StageError):
        follow("generate", _futures(pool, functions))
    assert lines == ["generate: 1 failed, ValueError: bad"]


def test_follow_prints_no_corrupt_data_which_the_flow_repairs(monkeypatch):
    def fail():
        raise CorruptChunkError("/run", "labels/c/0", "changed")

    lines = []
    monkeypatch.setattr(tasks.progress, "print_line", lines.append)
    monkeypatch.setattr(tasks.progress, "get_run_logger", lambda: logging.getLogger("test"))
    with ThreadPoolExecutor(1) as pool, pytest.raises(CorruptChunkError):
        follow("generate", _futures(pool, [fail]))
    assert lines == []
