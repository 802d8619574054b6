"""A request to stop: printed once, seen by stages and units, forgotten by the next flow."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from prefect.futures import PrefectConcurrentFuture

import tasks.progress
from tasks.progress import follow
from tasks.references import RunRef, UnitRef
from tasks.stopping import Stop, StoppedError, request_stop, requested_stop, stoppable
from tasks.study import carry_out


@pytest.fixture(autouse=True)
def no_artifacts(monkeypatch):
    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda *_, **__: None)
    with stoppable():
        yield


def test_request_stop_prints_and_keeps_the_first(capfd):
    assert requested_stop() is None
    assert request_stop(Stop("first – with a dash", 130))
    assert not request_stop(Stop("second", 143))
    assert requested_stop().exit_code == 130
    assert capfd.readouterr().err.split("\n") == ["", "first – with a dash", ""]
    with stoppable():
        assert requested_stop() is None


def test_stop_is_overdue_after_its_limit():
    assert not Stop("x", 130, limit_s=60.0).is_overdue
    assert Stop("x", 130, limit_s=60.0, since=time.monotonic() - 61).is_overdue


def test_carry_out_starts_no_unit_after_a_request():
    request_stop(Stop("stop", 130))
    unit = UnitRef(run=RunRef(url="/none", identity="x"), verb="generate", index=(0,), title="x")
    with pytest.raises(StoppedError, match="stop") as stopped:
        carry_out(unit)
    assert stopped.value.exit_code == 130


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
