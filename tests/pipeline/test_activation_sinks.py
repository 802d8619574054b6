"""Activations on their way to the store: what is written, what is held, and what goes wrong."""

import threading

import numpy as np
import pytest
import torch
from run_helpers import generated, small_study

from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.pipeline import activation_sinks, model_cache
from ldmprobe_core.pipeline.activation_sinks import ActivationWriter, peak_activation_bytes
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.prepare import prepare_run

BYTES = 2 * 4 * 4 * 8  # of one layer at one step: two samples, 4 x 4 tokens, 8 channels, float16


def shown(rng, layers=("a", "b"), samples=2):
    return HostTransfer(
        {
            name: torch.from_numpy(rng.normal(size=(samples, 4, 4, 8)).astype(np.float16))
            for name in layers
        }
    )


class Recorder:
    """A run that notes what it is asked to write, and can be held up or fail."""

    def __init__(self):
        self.written, self.fails = [], False
        self.may_go = threading.Event()
        self.may_go.set()

    def write(self, group, values, **region):
        assert self.may_go.wait(30)
        if self.fails:
            raise OSError("the disk is gone")
        self.written.append((group, values, region))


@pytest.mark.parametrize("block", [1, 3 * 2 * BYTES, 1 << 30], ids=["each", "three", "all"])
def test_activation_writer_writes_every_step_of_every_layer_once(monkeypatch, block):
    monkeypatch.setattr(activation_sinks, "BLOCK_BYTES", block)
    rng, run, expected = np.random.default_rng(0), Recorder(), {}
    with ActivationWriter(run, slice(0, 2)) as into:
        for step in range(7):
            for network in ("trained", "permuted"):
                transfer = shown(rng)
                for layer, (values, _) in transfer.result().items():
                    expected[f"{activation_sinks.ACTIVATION_GROUPS[network]}/{layer}", step] = (
                        values
                    )
                into(network, step, transfer)
    found = {}
    for group, values, region in run.written:
        assert region["sample"] == slice(0, 2)
        if "nonfinite" in values:
            assert values["nonfinite"].shape == (2, 7)
            continue
        for i, step in enumerate(range(region["step"].start, region["step"].stop)):
            assert (group, step) not in found
            found[group, step] = values["activation"][:, i]
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
    assert into.bytes == sum(values.nbytes for values in expected.values())


def test_activation_writer_writes_the_last_step_while_images_are_decoded():
    """Blocks are larger than all activations, and the writer is still open, as during decoding."""
    rng, run, written = np.random.default_rng(0), Recorder(), threading.Event()
    write = run.write

    def noted(group, values, **region):
        write(group, values, **region)
        if region.get("step") == slice(2, 3):
            written.set()

    run.write = noted
    with ActivationWriter(run, slice(0, 2), steps=3) as into:
        for step in range(2):
            into("trained", step, shown(rng, ("latents",)))
            into("trained", step, shown(rng))
        assert not run.written
        into("trained", 2, shown(rng, ("latents",)))
        into("trained", 2, shown(rng))
        assert written.wait(30)
    steps = {}
    for group, values, region in run.written:
        if "activation" in values:
            steps.setdefault(group, []).extend(range(region["step"].start, region["step"].stop))
    assert steps == {f"activations/{name}": [0, 1, 2] for name in ("latents", "a", "b")}


def test_activation_writer_counts_non_finite_values_by_sample_and_step():
    run = Recorder()
    values = torch.zeros(2, 4, 4, 8, dtype=torch.float16)
    values[1, 0, 0, :3] = float("nan")
    values[1, 2, 2, 0] = float("inf")
    with ActivationWriter(run, slice(0, 2)) as into:
        into("trained", 0, HostTransfer({"a": torch.zeros_like(values)}))
        into("trained", 1, HostTransfer({"a": values}))
    (counts,) = [v["nonfinite"] for _, v, _ in run.written if "nonfinite" in v]
    assert counts.tolist() == [[0, 0], [0, 4]]


def test_activation_writer_makes_generation_wait_for_a_slow_store(monkeypatch):
    """With the store held up, no more than two blocks leave; the third step has to wait."""
    monkeypatch.setattr(activation_sinks, "BLOCK_BYTES", 1)
    rng, run, passed = np.random.default_rng(0), Recorder(), []
    run.may_go.clear()
    reached = threading.Semaphore(0)

    def generate():
        with ActivationWriter(run, slice(0, 2)) as into:
            for step in range(5):
                into("trained", step, shown(rng))
                passed.append(step)
                reached.release()

    thread = threading.Thread(target=generate)
    thread.start()
    for _ in range(2):
        assert reached.acquire(timeout=30)
    assert not reached.acquire(timeout=0.3)  # the third is not through while nothing is written
    assert passed == [0, 1]
    run.may_go.set()
    thread.join(30)
    assert passed == [0, 1, 2, 3, 4]


def test_activation_writer_error_stops_the_batch(monkeypatch):
    monkeypatch.setattr(activation_sinks, "BLOCK_BYTES", 1)
    rng, run = np.random.default_rng(0), Recorder()
    run.fails = True

    def generate():
        with ActivationWriter(run, slice(0, 2)) as into:
            for step in range(5):
                into("trained", step, shown(rng))

    with pytest.raises(OSError, match="the disk is gone"):
        generate()
    assert not run.written


def test_activation_writer_keeps_the_error_of_a_failed_batch_and_ends_its_thread(monkeypatch):
    rng, run, before = np.random.default_rng(0), Recorder(), threading.active_count()

    def generate():
        with ActivationWriter(run, slice(0, 2)) as into:
            into("trained", 0, shown(rng))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        generate()
    assert not run.written
    assert threading.active_count() == before


def test_activation_writer_stores_the_bytes_of_activations_in_memory(
    tiny_model, tmp_path, monkeypatch
):
    """Written step by step, read back whole: the bytes of the same batch kept in memory."""
    monkeypatch.setattr(activation_sinks, "BLOCK_BYTES", 1)
    run = prepare_run(small_study("kept", tiny_model, 6), str(tmp_path))
    generate_batch(run.url, 0)
    with model_cache.use_models(run) as (sampler, _):
        made = generated(sampler, run.samples[:4])
    for group, kept in (("activations", made.activations), ("activations_permuted", made.permuted)):
        for layer, values in kept.values.items():
            stored = run.read(f"{group}/{layer}", "activation", sample=slice(0, 4))
            np.testing.assert_array_equal(stored, values)
            bad = run.read(f"{group}/{layer}", "nonfinite", sample=slice(0, 4))
            np.testing.assert_array_equal(bad, kept.nonfinite[layer])
    np.testing.assert_array_equal(run.read("images", "image", sample=slice(0, 4)), made.image)


def test_peak_activation_bytes_are_bounded_by_blocks():
    step = 185_000_000  # a step of Stable Diffusion at batch 4, with its twin
    assert (
        peak_activation_bytes(step, 15)
        == peak_activation_bytes(step, 1000)
        == 4 * ((16 << 20) + step)
    )
    assert (
        peak_activation_bytes(1000, 15) == 2 * 15 * 1000
    )  # small ones fit a block, twice while written
