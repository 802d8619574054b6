"""Tests that a request to stop is printed once, stops units, and does not affect later flows."""

from __future__ import annotations

import time

import pytest

from tasks.references import RunRef, UnitRef
from tasks.stopping import Stop, StoppedError, request_stop, requested_stop, stoppable
from tasks.study import carry_out


@pytest.fixture(autouse=True)
def no_request():
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
