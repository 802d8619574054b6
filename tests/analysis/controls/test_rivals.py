"""Recalibration of labelers' maps against least squares on tokens."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ldmprobe_core.analysis.controls.rivals import Recalibration
from ldmprobe_core.probing.label_set import LabelSet


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    depth = np.linspace(0, 3, 8)[:, None] + rng.normal(size=(12, 8, 8)).cumsum(2)
    masks = depth > 1.5
    maps = {"depth": depth, "foreground": masks}
    means = {prop: values[:8].mean(0, dtype=float) for prop, values in maps.items()}
    return LabelSet(maps, means, np.arange(8), np.arange(8, 10), np.arange(8, 12))


def test_recalibrate_fits_map_mean_map_and_constant(labels):
    rng = np.random.default_rng(1)
    depth, mean = labels.maps["depth"], labels.means["depth"]
    blurred = 2 - 0.5 * depth + rng.normal(0, 0.1, depth.shape)
    recalibration = Recalibration.fit(blurred[:8], labels, "depth", np.arange(8))
    found = recalibration.apply(blurred[8:])
    x = np.stack([blurred[:8].ravel(), np.tile(mean.ravel(), 8), np.ones(8 * 64)], axis=1)
    a, b, c = np.linalg.lstsq(x, depth[:8].ravel(), rcond=None)[0]
    np.testing.assert_allclose(found, a * blurred[8:] + b * mean + c, rtol=1e-6)
    assert a < 0
    assert np.corrcoef(found.ravel(), depth[8:].ravel())[0, 1] > 0.95


def test_recalibrate_moves_the_cut_of_a_mask(labels):
    """A labeler whose values lie below 0.5 everywhere still tells the mask."""
    masks = labels.maps["foreground"]
    faint = np.where(masks, 0.3, 0.1) + np.random.default_rng(2).normal(0, 0.02, masks.shape)
    recalibration = Recalibration.fit(faint[:8], labels, "foreground", np.arange(8))
    found = recalibration.apply(faint[8:])
    assert found.dtype == bool
    assert f1_score(masks[8:].ravel(), found.ravel()) > 0.97
    assert not (faint > 0.5).any()
