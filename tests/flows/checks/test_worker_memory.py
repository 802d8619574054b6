"""Tests of the memory limit of a Dask worker, which is computed from the plan."""

import pytest

from flows.checks import worker_memory
from flows.checks.worker_memory import memory_lines, planned_bytes, worker_memory_limit
from ldmprobe_core.pipeline.planning.plan import plan_study

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    def set_size(size):
        monkeypatch.setattr(worker_memory, "machine_memory", lambda: size)

    set_size(64 * GB)
    return set_size


def test_worker_memory_limit_is_twice_the_plan_and_two_gibibytes(tiny_study, machine):
    plan = plan_study(tiny_study())
    encoder = plan.folder / "text_encoder" / "model.safetensors"
    need = sum(plan.memory.values()) + encoder.stat().st_size
    assert planned_bytes(plan) == need
    assert worker_memory_limit(plan) == 2 * need + 2 * 2**30
    machine(GB)
    assert worker_memory_limit(plan) == GB


def test_memory_lines_compare_the_need_with_the_machine(tiny_study, machine):
    assert memory_lines(plan_study(tiny_study())) == []
    on_dask = {"runner": "dask", "workers": 8}
    plan = plan_study(tiny_study(execution=on_dask))
    (line,) = memory_lines(plan)
    assert f"{worker_memory_limit(plan) / 1e9:.2f} GB, for each of 8 workers" in line
    machine(8 * planned_bytes(plan) - 1)
    _, note = memory_lines(plan)
    assert "Fix: lower execution.workers" in note
    machine(planned_bytes(plan) - 1)
    (note,) = memory_lines(plan_study(tiny_study()))
    assert "Fix: lower sampling.batch" in note
    elsewhere = {"runner": "dask", "address": "tcp://127.0.0.1:1"}
    assert memory_lines(plan_study(tiny_study(execution=elsewhere))) == []
