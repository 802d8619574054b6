"""Predictions of a linear probe."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.linear import LinearProbe, finite_samples, predictions


def test_linear_probe_predict():
    probe = LinearProbe(np.array([2.0, -1.0]), 0.5, 1.0)
    activations = np.array([[[[1, 2], [3, 4]]]], dtype=np.float16)
    assert probe.predict(activations).tolist() == [[[0.5, 2.5]]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_sample_with_one_infinite_or_nan_activation_is_not_finite(dtype):
    limits = np.finfo(dtype)
    values = np.zeros((6, 2, 3), dtype)
    values[0] = [[limits.max, limits.min, limits.smallest_subnormal], [-0.0, 1, -1]]
    values[1, 1, 2], values[3, 0, 0], values[4, 1, 0] = np.inf, np.nan, -np.inf
    assert finite_samples(values).tolist() == [True, False, True, False, False, True]
    assert finite_samples(values[::2]).tolist() == [True, True, False]


def test_no_samples_have_no_predictions():
    probes = [LinearProbe(np.ones(3), 0.5, 0.1), LinearProbe(np.zeros(3), 1.0, 0.1)]
    assert predictions(np.empty((0, 2, 4, 3), np.float16), probes).shape == (0, 2, 4, 2)


def test_predict_takes_named_dimensions_and_refuses_other_shapes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 2, 3, 4))
    plain = LinearProbe(rng.normal(size=4), 0.5, 1.0)
    placed = replace(plain, position=rng.normal(size=(2, 3)))
    for probe in (plain, placed):
        expected = values @ probe.weight + 0.5
        if probe.position is not None:
            expected = expected + probe.position
        named = xr.DataArray(values, dims=("sample", "y", "x", "channel"))
        for given in (named, named.transpose("channel", "x", "sample", "y"), values.tolist()):
            np.testing.assert_allclose(probe.predict(given), expected, rtol=1e-12)
        for wrong in (values[0], values[None], values[..., :3], np.moveaxis(values, -1, 1)):
            with pytest.raises(UserError, match=r"^activations: the probe does not .*, 4\)$"):
                probe.predict(wrong)
    with pytest.raises(UserError, match=r"\(n, 2, 3, 4\)$"):
        placed.predict(values[:, :, :2])
