"""Changes of activations, for each method and null edit."""

import numpy as np
import pytest
import torch

from ldmprobe_core.interventions.changes import (
    EditLog,
    make_change,
    make_null_change,
    patch_from,
)
from ldmprobe_core.interventions.edit import EditDirection, Moments
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.probing.linear import LinearProbe

DEPTH = Intervention(prop="depth", doses=())


def cell(channels=6, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(channels, channels))
    probe = LinearProbe(rng.normal(size=channels), 0.2, 0.0, position=rng.normal(size=(4, 4)))
    moments = Moments(rng.normal(size=channels), mixed @ mixed.T)
    nulls = {
        "orthogonal": rng.normal(size=(2, channels)),
        "coherent": rng.normal(size=(2, channels)),
    }
    tokens = torch.from_numpy(rng.normal(size=(2, 4, 4, channels))).float()
    return probe, moments, EditDirection.of_probe(probe, moments, nulls=nulls), tokens


@pytest.mark.parametrize("null", [None, "orthogonal", "coherent"])
def test_make_change_with_the_probes_own_reading_changes_nothing_bit_for_bit(null):
    """A depth target whose block means are the probe's own predictions."""
    _, _, direction, tokens = cell()
    reading = direction.read(tokens).numpy()
    targets = reading.repeat(2, 1).repeat(2, 2)
    log = EditLog()
    change = make_change(DEPTH, "ridge", lambda step, layer: direction, targets, log=log)
    assert torch.equal(change(1, "layer", tokens), tokens)
    if null:
        change = make_null_change(lambda step, layer: direction, null, [0, 1], log, EditLog())
        assert torch.equal(change(1, "layer", tokens), tokens)


def test_make_change_records_the_change_of_the_reading_in_deviations():
    probe, moments, direction, tokens = cell()
    targets = np.random.default_rng(1).normal(size=(2, 8, 8))
    log = EditLog()
    change = make_change(DEPTH, "ridge", lambda step, layer: direction, targets, log=log)
    change(1, "a", tokens)
    change(2, "a", tokens * 0.5)
    deviation = np.sqrt(probe.weight @ moments.covariance @ probe.weight)
    means = targets.reshape(2, 4, 2, 4, 2).mean((2, 4))
    expected = [
        [np.sqrt(((m - probe.predict(x[None])[0]) ** 2).mean()) / deviation
         for m, x in zip(means, tokens.double().numpy() * factor, strict=True)]
        for factor in (1.0, 0.5)
    ]  # fmt: skip
    np.testing.assert_allclose(log.mean_reading(2), np.mean(expected, axis=0), rtol=1e-4)
    assert np.isnan(EditLog().mean_reading(3)).all()


@pytest.mark.parametrize("null", ["orthogonal", "coherent"])
def test_make_null_change_repeats_the_field_of_the_edit_at_other_activations(null):
    """Activations of the null edit's generation differ from those of the edit's, its sizes do not.

    Norms agree to 1e-6 at every token; the log records the change of the null edit itself.
    """
    probe, moments, direction, tokens = cell()
    targets = np.random.default_rng(1).normal(size=(2, 8, 8))
    edit, log = EditLog(), EditLog()
    change = make_change(DEPTH, "ridge", lambda step, layer: direction, targets, log=edit)
    edited = [(change(step, "a", tokens * step) - tokens * step).double() for step in (1, 2)]
    drifted = torch.from_numpy(np.random.default_rng(2).normal(size=tokens.shape)).float()
    other = make_null_change(lambda step, layer: direction, null, [0, 1], edit, log)
    added = [(other(step, "a", drifted) - drifted).double().numpy() for step in (1, 2)]
    unit = direction.nulls[null].double().numpy()
    for one, two in zip(edited, added, strict=True):
        along = np.einsum("nyxc,nc->nyx", two, unit)
        expected = np.sign(one.numpy() @ probe.weight) * np.linalg.norm(one.numpy(), axis=-1)
        np.testing.assert_allclose(along, expected, atol=2e-6)
        np.testing.assert_allclose(two, along[..., None] * unit[:, None, None], atol=2e-6)
    deviation = np.sqrt(probe.weight @ moments.covariance @ probe.weight)
    moved = [np.sqrt(((change @ probe.weight) ** 2).mean((1, 2))) / deviation for change in added]
    np.testing.assert_allclose(log.mean_reading(2), np.mean(moved, axis=0), rtol=1e-4)
    np.testing.assert_allclose(log.mean_size(2), edit.mean_size(2), rtol=1e-6)
    np.testing.assert_allclose(edit.mean_size(2), edit.mean_reading(2), rtol=1e-4)


def test_make_change_erases_the_readings_difference_between_tokens():
    """After an erasure every token has the reading of the mean activation."""
    probe, moments, direction, tokens = cell()
    spec = Intervention(method="leace")
    labels = np.zeros((2, 8, 8))
    change = make_change(spec, "ridge", lambda step, layer: direction, labels)
    erased = change(1, "a", tokens).double().numpy()
    expected = probe.predict(np.broadcast_to(moments.mean, tokens.shape))
    np.testing.assert_allclose(probe.predict(erased), expected, atol=1e-4)


def test_patch_from_gives_the_donors_activations():
    donors = np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype(np.float16)
    change = patch_from(lambda step, layer: donors + step)
    patched = change(3, "a", torch.zeros(2, 4, 4, 6))
    np.testing.assert_array_equal(patched.numpy(), (donors + np.float16(3)).astype(np.float32))
