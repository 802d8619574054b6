"""Directions of null edits, against what each null claims."""

import numpy as np
import pytest
import torch

from ldmprobe_core.interventions.edit import EditDirection, Moments
from ldmprobe_core.interventions.measures import summarize
from ldmprobe_core.interventions.null_directions import NULLS, NullContext, coherent_directions
from ldmprobe_core.interventions.spec import EDITED
from ldmprobe_core.probing.linear import LinearProbe


def context(channels=12, probes=3, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(channels, channels)) * np.geomspace(0.01, 3, channels)
    moments = Moments(rng.normal(size=channels), mixed @ mixed.T / channels)
    weights = rng.normal(size=(probes, channels)) * 5
    permuted = rng.normal(size=(2, channels))
    return NullContext(moments, weights, lambda: permuted, np.random.default_rng(seed + 1))


@pytest.mark.parametrize("seed", range(5))
def test_orthogonal_edit_leaves_the_reading_of_every_probe(seed):
    """The prediction of each probe of the property changes by at most 1e-5 of its deviation."""
    cell = context(seed=seed)
    probes = [LinearProbe(weight, 0.3, 0.0) for weight in cell.weights]
    direction = EditDirection.of_probe(
        probes[0], cell.moments, nulls={"orthogonal": NULLS["orthogonal"].directions(cell)}
    )
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(2, 4, 4, 12))).float()
    target = torch.from_numpy(rng.normal(size=(2, 4, 4)) * 3).float()
    change = direction.exact(x, target, 1.0) - x
    null = direction.null_change(direction.field_of(change), "orthogonal", [0, 5])
    assert (null.norm(dim=-1) > 0).all()
    for probe in probes:
        deviation = np.sqrt(probe.weight @ cell.moments.covariance @ probe.weight)
        moved = np.abs(null.double().numpy() @ probe.weight) / deviation
        assert moved.max() < 1e-5
    # The edit proper moves the first probe's prediction to the target.
    moved = np.abs(change.double().numpy() @ probes[0].weight)
    assert moved.mean() > 1e-2


def test_coherent_direction_has_the_covariance_of_the_activations():
    cell = context(channels=4)
    draws = np.concatenate([NULLS["coherent"].directions(cell) for _ in range(2000)])
    scale = np.abs(cell.moments.covariance).max()
    np.testing.assert_allclose(
        draws.T @ draws / len(draws), cell.moments.covariance, atol=0.05 * scale
    )


def test_permuted_directions_are_those_of_the_fitted_probes():
    cell = context()
    np.testing.assert_array_equal(NULLS["permuted"].directions(cell), cell.permuted_directions())
    assert NULLS["own_label"].directions is None


def test_coherent_direction_is_continuous_in_the_covariance():
    """Activations of two steps whose nearly equal variances change their order."""
    changes = [np.diag([1.0, 1.001, 4.0]), np.diag([1.001, 1.0, 4.0])]
    changes.append(changes[0] + 1e-3 * np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    one, *others = (
        coherent_directions(
            NullContext(Moments(np.zeros(3), c), np.ones((1, 3)), None, np.random.default_rng(7))
        )
        for c in changes
    )
    for other in others:
        np.testing.assert_allclose(other, one, atol=5e-3)


def test_orthogonal_directions_need_a_channel_that_no_probe_reads():
    with pytest.raises(ValueError, match="4 probes of the property read all 4 channels"):
        NULLS["orthogonal"].directions(context(channels=4, probes=4))


@pytest.mark.parametrize(
    ("condition", "kind", "samples", "count"),
    [
        ("coherent", "ridge", [0, 2, 5, 6, 10, 12, 14, 17], 8),
        ("coherent", "ridge", [1, 17, 33], 1),  # 16 directions by turns: all three have the second
        ("permuted", "adam", [0, 1, 2], 1),  # one permutation of probes that take epochs
        (EDITED, "ridge", [0, 1], None),
    ],
)
def test_directions_are_counted_as_far_as_samples_use_them(condition, kind, samples, count):
    assert summarize.directions_used(None, kind, condition, np.array(samples)) == count
