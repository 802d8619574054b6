"""Code lengths of labels against densities and regressions of SciPy and scikit-learn."""

import numpy as np
import pytest
from cell_data import pixel_blocks, predict_slowly, probe_on_pixels, refit_data
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from ldmprobe_core.analysis.generalization.description import (
    SMOOTHING,
    code_lengths,
    fit_bernoulli,
    fit_gaussian,
)

BLOCKS = [np.array([4, 11]), np.array([0, 7]), np.array([1, 2, 3, 19]), np.array([5, 6, 8, 12, 9])]


def coded(data):
    return code_lengths(data, BLOCKS, [data.sums(block) for block in BLOCKS])


@pytest.mark.parametrize("missing", [False, True])
def test_code_lengths_of_numbers_equal_gaussian_densities_in_a_loop(missing):
    data = refit_data("depth", missing)
    lengths = coded(data)
    weights = (~np.isnan(pixel_blocks(data, np.arange(40)))).sum(3)
    truth = data.labels.tokens("depth", (4, 4))
    for i in (2, 3):
        before, tuning, block = np.concatenate(BLOCKS[: i - 1]), BLOCKS[i - 1], BLOCKS[i]
        fit, term, penalty = probe_on_pixels(data, before, tuning)
        both = np.concatenate(BLOCKS[:i])
        final, final_term, _ = probe_on_pixels(data, both, tuning, (penalty,))
        for row, error, values in (
            (0, truth[tuning] - term, np.broadcast_to(final_term, (len(block), 4, 4))),
            (
                1,
                truth[tuning] - predict_slowly(data, fit, term, tuning),
                predict_slowly(data, final, final_term, block),
            ),
        ):
            known = weights[tuning] > 0
            variance = np.average(error[known] ** 2, weights=weights[tuning][known])
            for sample, guess in zip(block, values, strict=True):
                use = weights[sample] > 0
                bits = -norm.logpdf(truth[sample][use], guess[use], np.sqrt(variance)) / np.log(2)
                expected = np.average(bits, weights=weights[sample][use])
                assert lengths[row, sample] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(lengths[:, [4, 11, 0, 7, 30]]).all()


def test_code_lengths_of_masks_equal_cross_entropies_of_scikit_learn():
    data = refit_data("foreground")
    lengths = coded(data)
    tuning, block = BLOCKS[1], BLOCKS[2]
    fit, term, penalty = probe_on_pixels(data, BLOCKS[0], tuning)
    final, final_term, _ = probe_on_pixels(data, np.concatenate(BLOCKS[:2]), tuning, (penalty,))
    share = pixel_blocks(data, tuning).mean(3).ravel() * (1 - SMOOTHING) + SMOOTHING / 2
    x = predict_slowly(data, fit, term, tuning).reshape(-1, 1)
    calibration = LogisticRegression(C=1 / (1e-4 * len(x)), tol=1e-10, max_iter=1000).fit(
        np.concatenate([x, x]),
        np.repeat([1, 0], len(x)),
        sample_weight=np.concatenate([share, 1 - share]),
    )
    guess = predict_slowly(data, final, final_term, block).reshape(-1, 1)
    chance = calibration.predict_proba(guess)[:, 1].reshape(-1, 4, 4, 1)
    truth = pixel_blocks(data, block)
    expected = -np.log2(np.where(truth == 1, chance, 1 - chance)).mean((1, 2, 3))
    np.testing.assert_allclose(lengths[1, block], expected, rtol=1e-4)


def test_code_lengths_are_shorter_with_a_probe_that_reads_the_labels():
    for prop in ("depth", "foreground"):
        position, probe = coded(refit_data(prop))[:, BLOCKS[3]]
        assert position.mean() > probe.mean() + 0.05


def test_code_lengths_are_not_shorter_for_labels_that_activations_do_not_hold():
    data = refit_data("depth")
    rng = np.random.default_rng(5)
    data.activations[:] = rng.normal(size=data.activations.shape)
    position, probe = coded(data)[:, np.concatenate(BLOCKS[2:])]
    assert position.mean() < probe.mean() + 0.05


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_block_after_one_whose_labels_hardly_vary_is_not_coded(noise):
    data = refit_data("depth")
    usual, maps = coded(data), data.labels.maps["depth"].copy()
    spread = np.random.default_rng(1).standard_normal((4, *maps.shape[1:]))
    maps[BLOCKS[2]] = 3.0 + noise * spread
    data.labels.maps["depth"] = maps
    with np.errstate(all="raise"):
        lengths = coded(data)
    assert np.isfinite(lengths[:, BLOCKS[2]]).all()
    assert np.isnan(lengths[:, BLOCKS[3]]).all()
    assert np.isfinite(usual[:, BLOCKS[3]]).all()
    # A mask needs no variance: its probabilities are smoothed.
    data = refit_data("foreground")
    masks = data.labels.maps["foreground"].copy()
    masks[BLOCKS[2]] = False
    data.labels.maps["foreground"] = masks
    assert (np.abs(coded(data)[:, BLOCKS[3]]) < 20).all()


def test_fit_gaussian_of_constant_labels_gives_finite_bits():
    bits = fit_gaussian(np.ones(4), np.ones(4), np.ones(4))
    assert np.isfinite(bits(np.ones(4), np.ones(4))).all()


def test_fit_bernoulli_of_empty_masks_gives_finite_bits():
    rng = np.random.default_rng(0)
    bits = fit_bernoulli(rng.normal(size=200), np.zeros(200), np.ones(200))
    of_empty, of_full = bits(np.zeros(2), np.array([0.0, 1.0]))
    assert 0 < of_empty < 0.01
    assert 5 < of_full < 20
