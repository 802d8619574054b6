"""Tests of the memory limit of a Dask worker, and of studies that the memory cannot hold."""

import pytest
from safetensors.torch import load_file

from flows.checks import worker_memory
from flows.checks.worker_memory import (
    memory_lines,
    memory_problems,
    planned_bytes,
    worker_memory_limit,
)
from ldmprobe_core.pipeline.planning.plan import plan_study

GB = 10**9


def encoder_values(plan):
    """Number of values in the text encoder's weights."""
    state = load_file(plan.folder / "text_encoder" / "model.safetensors")
    return sum(tensor.numel() for tensor in state.values())


@pytest.fixture
def machine(monkeypatch):
    def set_size(size):
        monkeypatch.setattr(worker_memory, "machine_memory", lambda: size)

    set_size(64 * GB)
    return set_size


def test_worker_memory_limit_is_twice_the_plan_and_two_gibibytes(tiny_study, machine):
    plan = plan_study(tiny_study())
    need = sum(plan.memory.values()) + 4 * encoder_values(plan)
    assert planned_bytes(plan) == need
    assert worker_memory_limit(plan) == 2 * need + 2 * 2**30
    machine(GB)
    assert worker_memory_limit(plan) == GB


def test_memory_lines_give_the_limit_of_local_dask_workers(tiny_study, machine):
    assert memory_lines(plan_study(tiny_study())) == []
    plan = plan_study(tiny_study(execution={"runner": "dask", "workers": 8}))
    (line,) = memory_lines(plan)
    assert f"{worker_memory_limit(plan) / 1e9:.2f} GB, for each of 8 workers" in line
    assert memory_problems(plan) == ()


@pytest.mark.parametrize("runner", ["local", "dask"])
def test_memory_problems_name_workers_and_a_batch_that_fit(tiny_study, machine, runner):
    execution = {"runner": runner, "workers": 8, "device": "cpu"}
    plan = plan_study(tiny_study(execution=execution, sampling={"batch": 12}))
    need = planned_bytes(plan)
    machine(8 * need)
    assert memory_problems(plan) == ()
    machine(8 * need - 1)
    (problem,) = memory_problems(plan)
    assert problem.startswith("sampling.batch: 8 workers need about ")
    assert "(12). Fix: set execution.workers to 7, or set sampling.batch to 6, or name" in problem
    # At the tiny size all of these grow with the batch: images of 16 x 16 pixels with two for each
    # of 3 steps, and the activations of 3 steps, which are held twice.
    per_sample = (1 + 2 * 3) * 16 * 16 * 3 + plan.memory["activations"] // 12
    machine(8 * (need - 9 * per_sample))
    assert "set sampling.batch to 3," in memory_problems(plan)[0]
    machine(8 * (need - 12 * per_sample))
    assert "sampling.batch to" not in memory_problems(plan)[0]


def test_memory_problems_leave_other_machines_alone(tiny_study, machine):
    machine(1)
    elsewhere = {"runner": "dask", "address": "tcp://127.0.0.1:1"}
    assert memory_problems(plan_study(tiny_study(execution=elsewhere))) == ()


def test_memory_problems_compare_weights_with_a_gpu(tiny_study, machine, monkeypatch):
    plan = plan_study(tiny_study())
    weights = plan.memory["denoiser"] + plan.memory["vae"] + 4 * encoder_values(plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: weights)
    assert memory_problems(plan) == ()
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: weights - 1)
    (problem,) = memory_problems(plan)
    assert problem.startswith("model.dtype: the networks' weights need ")
    assert "(float32). Fix: set model.cpu_offload to true, or model.dtype to float16, or" in problem
    assert problem.endswith("or controls.permuted_weights to false")
    machine(planned_bytes(plan) - weights)  # the networks do not count twice
    assert memory_problems(plan) == (problem,)


def test_memory_problems_count_text_encoders_in_the_dtype_of_the_model(
    tiny_study, machine, monkeypatch
):
    plan = plan_study(tiny_study(model={"dtype": "float16"}))
    weights = plan.memory["denoiser"] + plan.memory["vae"] + 2 * encoder_values(plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: weights)
    assert memory_problems(plan) == ()
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: weights - 1)
    (problem,) = memory_problems(plan)
    assert "model.dtype to" not in problem
