"""Tests of the memory limit of a Dask worker, and of studies that the memory cannot hold."""

from types import SimpleNamespace

import psutil
import pytest
from run_helpers import statistics_study
from safetensors.torch import load_file

from flows.checks import worker_memory
from flows.checks.worker_memory import (
    memory_lines,
    memory_problems,
    planned_memory,
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
    need = sum(plan.memory.values())
    assert plan.memory["text encoders"] == 4 * encoder_values(plan)
    assert worker_memory_limit(plan) == 2 * need + 2 * 2**30
    machine(GB)
    assert worker_memory_limit(plan) == GB


def test_planned_memory_is_that_of_all_threads_of_a_process(tiny_study):
    three = {"workers": 3, "device": "cpu"}
    threads = plan_study(tiny_study(execution={"runner": "local", **three}))
    libraries = threads.memory["libraries"]
    each = sum(threads.memory.values()) - libraries
    assert planned_memory(threads, on_gpu=False) == {"memory": libraries + 3 * each}
    processes = plan_study(tiny_study(execution={"runner": "dask", **three}))
    assert planned_memory(processes, on_gpu=False) == {"memory": libraries + each}


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
    each = sum(plan.memory.values())
    # Threads share the libraries of their process.
    need = 8 * each - (7 * plan.memory["libraries"] if runner == "local" else 0)
    machine(need)
    assert memory_problems(plan) == ()
    machine(need - 1)
    (problem,) = memory_problems(plan)
    assert problem.startswith("sampling.batch: 8 workers need about ")
    assert "(12). Fix: set execution.workers to 7, or set sampling.batch to 6, or name" in problem
    # At the tiny size all of these grow with the batch: images of 16 x 16 pixels with two for each
    # of 3 steps, the activations of 3 steps, which are held twice, labels, and intermediate values.
    assert plan.memory["images"] == 12 * (1 + 2 * 3) * 16 * 16 * 3
    uses = ("images", "labels", "activations", "intermediate values", "kept memory")
    per_sample = sum(plan.memory[use] for use in uses) // 12
    machine(need - 8 * 9 * per_sample)
    assert "set sampling.batch to 3," in memory_problems(plan)[0]
    machine(need - 8 * 12 * per_sample)
    assert "sampling.batch to" not in memory_problems(plan)[0]


def test_memory_problems_count_no_more_images_than_the_study_has(tiny_study, machine):
    prompts, execution = {"samples": 12}, {"runner": "local", "workers": 1, "device": "cpu"}
    plan = plan_study(tiny_study(prompts=prompts, execution=execution, sampling={"batch": 12}))
    large = plan_study(tiny_study(prompts=prompts, execution=execution, sampling={"batch": 900}))
    assert large.memory == plan.memory
    machine(sum(plan.memory.values()))
    assert memory_problems(large) == ()
    machine(sum(plan.memory.values()) - 1)
    assert "(900). Fix: set sampling.batch to 6, or" in memory_problems(large)[0]


def test_memory_is_planned_for_a_batch_that_takes_the_samples_left_over(tiny_model):
    """With eight stored samples, 14 others form batches of 4, 4 and 6."""
    plan = plan_study(statistics_study(tiny_model, "statistics", samples=22))
    assert (plan.n_stored, plan.largest_batch) == (8, 6)
    assert plan_study(statistics_study(tiny_model, "statistics", samples=23)).largest_batch == 4


def test_memory_problems_leave_other_machines_alone(tiny_study, machine):
    machine(1)
    elsewhere = {"runner": "dask", "address": "tcp://127.0.0.1:1"}
    assert memory_problems(plan_study(tiny_study(execution=elsewhere))) == ()


def on_gpu(plan):
    """Bytes of the networks and of their intermediate values."""
    uses = ("denoiser", "vae", "text encoders", "labelers", "intermediate values")
    return sum(plan.memory[use] for use in uses)


def test_memory_problems_compare_networks_with_a_gpu(tiny_study, machine, monkeypatch):
    plan = plan_study(tiny_study())
    need = on_gpu(plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: need)
    assert memory_problems(plan) == ()
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: need - 1)
    (problem,) = memory_problems(plan)
    assert problem.startswith("model.dtype: the networks need ")
    assert "(float32). Fix: set model.cpu_offload to true, or model.dtype to float16, or" in problem
    assert problem.endswith("or controls.permuted_weights to false")
    machine(sum(plan.memory.values()) - need)  # the networks do not count twice
    assert memory_problems(plan) == (problem,)


def test_memory_problems_count_text_encoders_in_the_dtype_of_the_model(
    tiny_study, machine, monkeypatch
):
    plan = plan_study(tiny_study(model={"dtype": "float16"}))
    assert plan.memory["text encoders"] == 2 * encoder_values(plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: on_gpu(plan))
    assert memory_problems(plan) == ()
    monkeypatch.setattr(worker_memory, "gpu_memory", lambda: on_gpu(plan) - 1)
    (problem,) = memory_problems(plan)
    assert "model.dtype to" not in problem


@pytest.mark.parametrize(
    ("available", "limit", "expected"),
    [(10, 100, 3), (6, 100, 2), (100, 7, 2), (1, 100, 0), (100, 1, 0)],
)
def test_processes_fit_into_the_memory_that_is_free(monkeypatch, available, limit, expected):
    """Of at most three processes of 3 GB each; this process itself holds 1 GB."""
    free = SimpleNamespace(available=available * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    own = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10**9))
    monkeypatch.setattr(psutil, "Process", lambda: own)
    monkeypatch.setattr(worker_memory, "machine_memory", lambda: limit * 10**9)
    assert worker_memory.number_with_room(3 * 10**9, 3) == expected
