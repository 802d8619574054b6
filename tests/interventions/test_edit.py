"""Edits of activations, against a general solver and the paper's loop written out."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ldmprobe_core.interventions.edit import (
    EditDirection,
    Moments,
    edit_by_gradient_descent,
    target_reading,
)
from ldmprobe_core.probing.linear import LinearProbe


def probe(channels, seed=0):
    rng = np.random.default_rng(seed)
    return LinearProbe(rng.normal(size=channels), float(rng.normal()), 0.0)


def tokens(shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


@pytest.mark.parametrize("metric", ["l2", "covariance"])
def test_edit_direction_exact_is_the_smallest_edit_that_reaches_the_target(metric):
    rng = np.random.default_rng(2)
    for case in range(5):
        channels = 6
        mixed = rng.normal(size=(channels, channels))
        covariance = mixed @ mixed.T + 0.1 * np.eye(channels)
        p = probe(channels, case)
        direction = EditDirection.of_probe(p, Moments(np.zeros(channels), covariance), metric)
        x = tokens((2, 3, 3, channels), case)
        target = tokens((2, 3, 3), case + 50) * 3
        edited = direction.exact(x, target, 1.0)
        np.testing.assert_allclose(p.predict(edited.double().numpy()), target, atol=1e-4)
        # one token, by a general solver: the smallest d' C^-1 d that reads the target
        inverse = np.linalg.inv(covariance) if metric == "covariance" else np.eye(channels)
        h, t = x[1, 2, 0].double().numpy(), float(target[1, 2, 0])
        solved = minimize(
            lambda d, inverse=inverse: d @ inverse @ d,
            np.zeros(channels),
            constraints={
                "type": "eq",
                "fun": lambda d, p=p, h=h, t=t: p.weight @ (h + d) + p.bias - t,
            },
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        ours = edited[1, 2, 0].double().numpy() - h
        assert ours @ inverse @ ours <= solved.fun * (1 + 1e-4)
        np.testing.assert_allclose(ours, solved.x, atol=2e-3)


def test_edit_direction_exact_scales_with_strength_and_skips_nan_targets():
    p = probe(5)
    direction = EditDirection.of_probe(p)
    x, target = tokens((1, 2, 2, 5)), tokens((1, 2, 2), 9)
    before = torch.from_numpy(p.predict(x.numpy()))
    for strength in (0.0, 0.3, 1.0):
        after = torch.from_numpy(p.predict(direction.exact(x, target, strength).numpy()))
        torch.testing.assert_close(
            after, before + strength * (target - before), rtol=1e-4, atol=1e-4
        )
    assert torch.equal(direction.exact(x, target, 0.0), x)
    target[0, 1, 1] = float("nan")
    assert torch.equal(direction.exact(x, target, 1.0)[0, 1, 1], x[0, 1, 1])


def test_edit_direction_of_probe_refuses_zero_weights():
    with pytest.raises(ValueError, match="weights are zero"):
        EditDirection.of_probe(LinearProbe(np.zeros(3), 1.0, 0.0))


def test_edit_direction_exact_passes_non_finite_predictions_on():
    """Only a NaN target leaves a token as it is; a NaN activation must not look like no edit."""
    p = probe(5)
    direction = EditDirection.of_probe(p)
    x, target = tokens((1, 2, 2, 5)), tokens((1, 2, 2), 9)
    x[0, 0, 0, 2] = float("nan")
    target[0, 1, 0] = float("inf")
    finite = torch.isfinite(direction.exact(x, target, 1.0)).all(-1)[0]
    assert finite.tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("metric", ["l2", "covariance"])
@pytest.mark.parametrize(
    ("wrong", "value"),
    [*itertools.product(("weight", "bias", "mean", "covariance", "null"), (np.nan, np.inf)),
     ("weight", 1e39), ("bias", 1e39), ("null", 0.0)],
)  # fmt: skip
def test_edit_direction_of_probe_refuses_values_that_are_not_finite(wrong, value, metric):
    """Values of 1e39 are infinite in float32; a null direction of zero has no unit vector."""
    parts = {"weight": np.ones(3), "bias": np.ones(1), "mean": np.ones(3), "null": np.ones(3)}
    parts["covariance"] = np.eye(3)
    parts[wrong] = np.where(parts[wrong] != 0, value, 0.0)
    p = LinearProbe(parts["weight"], float(parts["bias"][0]), 0.0)
    moments = Moments(parts["mean"], parts["covariance"])
    with pytest.raises(ValueError, match="not finite"), np.errstate(all="ignore"):
        EditDirection.of_probe(p, moments, metric, nulls={"other": parts["null"][None]})


@pytest.mark.parametrize("foreground", [True, False])
def test_edit_by_gradient_descent_equals_the_papers_loop(foreground):
    """Written out: two logits under cross-entropy, or Huber; upsampled by nearest; Adam by hand."""
    p = probe(4)
    x = tokens((1, 2, 2, 4))
    rng = np.random.default_rng(5)
    target = (rng.random((1, 8, 8)) > 0.5) * 1.0 if foreground else rng.normal(size=(1, 8, 8))
    edited = edit_by_gradient_descent(
        x, torch.from_numpy(target).float(), EditDirection.of_probe(p), foreground, 20, 5e-3
    )
    h = x[0].double().numpy().copy()
    m, v = np.zeros_like(h), np.zeros_like(h)
    for t in range(1, 21):
        gradient = np.zeros_like(h)
        for i in range(8):
            for j in range(8):
                y, z = i // 4, j // 4
                read = h[y, z] @ p.weight + p.bias
                if foreground:  # softmax of (0, read): d loss / d read = probability - label
                    slope = 1 / (1 + np.exp(-read)) - target[0, i, j]
                else:
                    slope = np.clip(read - target[0, i, j], -1, 1)
                gradient[y, z] += slope * p.weight / 64
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        h -= 5e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(edited[0].numpy(), h, atol=1e-4)
    assert not np.allclose(edited[0].numpy(), x[0].numpy(), atol=1e-2)


def test_edit_by_gradient_descent_does_not_depend_on_the_batch():
    p, x = probe(4), tokens((3, 2, 2, 4))
    target = (tokens((3, 4, 4), 8) > 0).float()
    together = edit_by_gradient_descent(x, target, EditDirection.of_probe(p), True, 10)
    alone = edit_by_gradient_descent(x[1:2], target[1:2], EditDirection.of_probe(p), True, 10)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


def moments_of(channels, seed=3):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(channels, channels))
    return Moments(rng.normal(size=channels), mixed @ mixed.T / channels)


def test_edit_direction_at_dose_sets_the_contrast_of_every_sample():
    """Written out per sample, on a probe with a position term."""
    rng, moments = np.random.default_rng(4), moments_of(5)
    position = rng.normal(size=(3, 4))
    p = LinearProbe(rng.normal(size=5), 0.7, 0.0, position=position)
    direction = EditDirection.of_probe(p, moments)
    target = rng.normal(size=(2, 3, 4))
    scaled = direction.at_dose(torch.from_numpy(target).float(), 2.5).double().numpy()
    mean = position + 0.7 + p.weight @ moments.mean
    deviation = np.sqrt(p.weight @ moments.covariance @ p.weight)
    for before, after in zip(target, scaled, strict=True):
        np.testing.assert_allclose(
            np.sqrt(((after - mean) ** 2).mean()), 2.5 * deviation, rtol=1e-5
        )
        ratio = (after - mean) / (before - mean)
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)


def test_edit_direction_null_change_has_the_norm_and_sign_of_the_edit_at_every_token():
    rng = np.random.default_rng(5)
    p, other = probe(6), rng.normal(size=(3, 6))
    direction = EditDirection.of_probe(p, moments_of(6), nulls={"other": other})
    x, target = tokens((2, 3, 3, 6)), tokens((2, 3, 3), 9) * 4
    change = direction.exact(x, target, 1.0) - x
    null = direction.null_change(direction.field_of(change), "other", [4, 8])
    torch.testing.assert_close(null.norm(dim=-1), change.norm(dim=-1), rtol=1e-6, atol=1e-6)
    # Samples 4 and 8 take the directions 1 and 2 of 3.
    unit = other / np.linalg.norm(other, axis=1, keepdims=True)
    along = np.stack([n @ unit[d] for n, d in zip(null.double().numpy(), (1, 2), strict=True)])
    gap = target.double().numpy() - p.predict(x.double().numpy())
    np.testing.assert_array_equal(np.sign(along), np.sign(gap))
    np.testing.assert_allclose(np.abs(along), change.norm(dim=-1).double(), rtol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "covariance"])
def test_edit_direction_refuses_a_prediction_that_is_the_same_for_all_activations(metric):
    """The activations vary in the first two of three channels, the probe reads the third."""
    rng = np.random.default_rng(8)
    activations = rng.normal(size=(500, 3)) * (1, 30, 0) + (5, 0, 7)
    moments = Moments(activations.mean(0), np.cov(activations.T, bias=True))
    with pytest.raises(ValueError, match=r"its (prediction is the same|weights are zero)"):
        EditDirection.of_probe(LinearProbe(np.array([0, 0, 2.0]), 0.1, 0.0), moments, metric)
    other = EditDirection.of_probe(LinearProbe(np.array([1e-3, 0, 2.0]), 0.1, 0.0), moments, metric)
    np.testing.assert_allclose(other.deviation, 1e-3 * activations[:, 0].std(), rtol=1e-6)


def test_target_reading_is_the_logit_of_shares_for_logistic_masks_only():
    share = np.array([[[0.0, 0.5, 1.0]]])
    np.testing.assert_allclose(
        target_reading(share, "logistic", True, 0.9), np.log([[[1 / 9, 1, 9]]]), rtol=1e-12
    )
    np.testing.assert_array_equal(target_reading(share, "ridge", True), share)
    np.testing.assert_array_equal(target_reading(share, "logistic", False), share)
