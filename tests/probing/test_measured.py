"""Fits and scores of labels with pixels that were not measured, on the measured pixels alone."""

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

from ldmprobe_core.probing import metrics
from ldmprobe_core.probing.block_scores import BlockScorer, block_means, upsample
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.fitters.adam import fit_adam
from ldmprobe_core.probing.fitters.mlp import fit_mlp
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import mean_map, measured, score_measured
from ldmprobe_core.study.conditions import ASSIGNMENTS
from ldmprobe_core.study.loading import parse_study

N, GRID, SIZE, CHANNELS = 12, (3, 4), (6, 12), 4


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def holes(maps, seed, whole=()):
    """Float maps with a third of the pixels, and the first block, not measured."""
    lost = np.random.default_rng(seed).random(maps.shape) < 0.33
    lost[:, :2, :3] = True
    lost[list(whole)] = False
    return np.where(lost, np.nan, maps).astype(np.float32)


@pytest.fixture
def data():
    """Activations, and a mask, depth and shading that depend on them; shading is whole."""
    rng = np.random.default_rng(3)
    activations = rng.normal(1, [1, 2, 0.5, 1], (N, *GRID, CHANNELS)).astype(np.float16)
    signal = pixels_of(activations) @ np.array([1, -0.5, 2, 0])
    depth = signal + rng.normal(0, 1, (N, *SIZE))
    mask = holes(depth > depth.mean(), 1, whole=[2, 10])
    return activations, {"foreground": mask, "depth": holes(depth, 2), "shading": signal**2}


def pixels_of(activations):
    return activations.astype(np.float64).repeat(2, 1).repeat(3, 2)


@pytest.fixture
def labels(data):
    maps = data[1]
    train = np.arange(6)
    means = {prop: mean_map(values[train]) for prop, values in maps.items()}
    return LabelSet(maps, means, train, np.arange(6, 9), np.arange(6, N))


def study_of(kinds, penalties=(1e-3, 1.0), **controls):
    return parse_study(
        {
            "probes": {"kinds": list(kinds), "penalties": list(penalties)},
            "controls": {"shuffled_labels": True, "permuted_weights": False, **controls},
        }
    )


def rows_of(activations, maps, members):
    """Pixels (pixel, channel) and labels (pixel,) that were measured."""
    x, y = pixels_of(activations[members]).reshape(-1, CHANNELS), maps[members].ravel()
    return x[~np.isnan(y)], y[~np.isnan(y)].astype(np.float64)


def test_measured_of_complete_maps_is_none():
    assert measured(np.zeros((2, 3, 3), bool)) is None
    assert measured(np.zeros((2, 3, 3))) is None
    assert measured(np.full((1, 1, 2), np.nan)).tolist() == [[[False, False]]]


def test_mean_map_is_of_the_measured_maps_at_each_pixel(data):
    depth = data[1]["depth"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = np.nanmean(depth.astype(np.float64), 0)
    expected[np.isnan(expected)] = np.nanmean(depth.astype(np.float64))
    np.testing.assert_allclose(mean_map(depth), expected)
    whole = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
    assert mean_map(whole).tobytes() == whole.mean(0, dtype=np.float64).tobytes()


def test_block_means_are_of_measured_pixels(data):
    depth = data[1]["depth"]
    found = block_means(depth, GRID)
    assert np.isnan(found[:, 0, 0]).all()
    for i, y, x in np.ndindex(N, *GRID):
        block = depth[i, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].astype(np.float64)
        known = block[~np.isnan(block)]
        assert found[i, y, x] == pytest.approx(known.mean() if known.size else np.nan, nan_ok=True)


def position_of(mean):
    """Position term at full size: the mean map averaged over the block of each token."""
    return mean.reshape(GRID[0], 2, GRID[1], 3).mean((1, 3)).repeat(2, 0).repeat(3, 1)


@pytest.mark.parametrize("prop", ["depth", "shading", "foreground"])
@pytest.mark.parametrize("assignment", ["true", "shuffled"])
@pytest.mark.parametrize("kind", ["ridge", "plain_ridge"])
def test_ridge_probe_equals_scikit_learn_on_measured_pixels(data, labels, prop, assignment, kind):
    activations, maps = data
    study = study_of([kind])
    result = probe_activations(activations, labels, study)
    probe = result[assignment].probes[kind, prop]
    term = position_of(labels.means[prop])
    if kind == "ridge":
        np.testing.assert_allclose(upsample(probe.position[None], SIZE)[0], term)
    else:
        assert probe.position is None

    def rows(members):
        owners = ASSIGNMENTS[assignment](members, study.prompts.seed)
        values = maps[prop].astype(np.float64).copy()
        values[members] = maps[prop][owners]
        return rows_of(activations, values - term if kind == "ridge" else values, members)

    x, y = rows(labels.train)
    choose_x, choose_y = rows(labels.validation)
    fits = []
    for penalty in study.probes.penalties:
        fit = Ridge(alpha=penalty * x.var(0).mean() * len(x)).fit(x, y)
        fits.append((((fit.predict(choose_x) - choose_y) ** 2).mean(), penalty, fit))
    _, penalty, fit = min(fits, key=lambda one: one[0])
    assert probe.penalty == penalty
    np.testing.assert_allclose(probe.weight, fit.coef_, rtol=1e-6)
    assert probe.bias == pytest.approx(fit.intercept_, rel=1e-6)


def test_logistic_probe_equals_scikit_learn_on_measured_pixels(data, labels):
    activations, maps = data
    probe = probe_activations(activations, labels, study_of(["ridge", "plain_logistic"], [1e-2]))
    probe = probe["true"].probes["plain_logistic", "foreground"]
    x, y = rows_of(activations, maps["foreground"], labels.train)
    penalty = 1e-2 * x.var(0).mean()
    reference = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=10_000).fit(x, y)
    # The solver stops at a Newton decrement of 1e-9.  The decrement is the squared error of the
    # solution, measured by the Hessian, whose least eigenvalue for weights is at least the penalty.
    bound = np.sqrt(1e-9 / penalty)
    assert np.linalg.norm(probe.weight - reference.coef_[0]) < bound
    np.testing.assert_allclose(probe.weight, reference.coef_[0], rtol=1e-3, atol=1e-4)
    assert probe.bias == pytest.approx(reference.intercept_[0], abs=1e-4)


def test_logistic_probe_chooses_its_penalty_on_measured_pixels(data, labels):
    activations, maps = data
    penalties = (1e-4, 1e-1, 10.0)
    probe = probe_activations(activations, labels, study_of(["ridge", "plain_logistic"], penalties))
    chosen = probe["true"].probes["plain_logistic", "foreground"].penalty
    x, y = rows_of(activations, maps["foreground"], labels.train)
    choose_x, choose_y = rows_of(activations, maps["foreground"], labels.validation)
    losses = []
    for penalty in penalties:
        scale = penalty * x.var(0).mean() * len(x)
        fit = LogisticRegression(C=1 / scale, tol=1e-10, max_iter=10_000).fit(x, y)
        chance = expit(fit.decision_function(choose_x))
        losses.append(-np.log(np.where(choose_y, chance, 1 - chance)).mean())
    assert chosen == penalties[int(np.argmin(losses))]


@pytest.mark.parametrize("mask", [True, False])
def test_adam_and_mlp_are_blind_to_pixels_not_measured(data, mask):
    """Activations of tokens without a measured pixel change no fit, and give no NaN."""
    activations, maps = data
    target = maps["foreground" if mask else "depth"]
    lost = np.isnan(block_means(target, GRID))
    other = np.where(lost[..., None], 7, activations)
    counts = (~np.isnan(target)).reshape(N, 3, 2, 4, 3).sum((2, 4)).astype(float)
    one, two = (fit_adam(x, target, mask, epochs=2) for x in (activations, other))
    np.testing.assert_allclose(one.weight, two.weight, rtol=1e-6)
    assert np.isfinite(one.weight).all()
    means = block_means(target, GRID)
    probes = [fit_mlp(x, means, mask, epochs=2, weight=counts) for x in (activations, other)]
    one, two = (probe.predict(activations) for probe in probes)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert np.isfinite(one).all()


@pytest.mark.parametrize("mask", [True, False])
def test_adam_with_everything_measured_takes_the_same_steps_for_floats(data, mask):
    """A sample of which only one pixel is lost moves a fit by little: the mean, not the sum."""
    activations, maps = data
    target = np.nan_to_num(maps["foreground" if mask else "depth"])
    whole = fit_adam(activations, target > 0.5 if mask else target, mask, epochs=2)
    target = target.copy()
    target[0, 0, 0] = np.nan
    partly = fit_adam(activations, target, mask, epochs=2)
    assert not np.array_equal(partly.weight, whole.weight)
    np.testing.assert_allclose(partly.weight, whole.weight, atol=2e-3)


def expected_scores(prop, predicted, truth, mean, cut=0.5):
    """Every metric by scipy and scikit-learn on measured pixels."""
    rows = []
    for p, t in zip(predicted, truth, strict=True):
        known = ~np.isnan(t)
        p, t = p[known], t[known].astype(np.float64)
        if prop == "foreground":
            rows.append([
                f1_score(t, p > cut), jaccard_score(t, p > cut), roc_auc_score(t, p),
                average_precision_score(t, p),
            ])  # fmt: skip
        else:
            p, rank = p.astype(np.float64), stats.rankdata
            covariates = [m[known] for m in (mean, blocks_of(mean))]
            rows.append([
                stats.spearmanr(p, t).statistic, stats.pearsonr(p, t).statistic,
                np.sqrt(((p - t) ** 2).mean()),
                correlation_of_rests(rank(p), rank(t), [rank(m) for m in covariates]),
                correlation_of_rests(p, t, covariates),
            ])  # fmt: skip
    return np.transpose(rows)


def blocks_of(mean):
    """The block means of a map at full size."""
    return mean.reshape(GRID[0], 2, GRID[1], 3).mean((1, 3)).repeat(2, 0).repeat(3, 1)


def correlation_of_rests(a, b, covariates):
    """Correlation of two maps less their least-squares fits on the covariates and a constant."""
    design = np.stack([np.ones(a.size), *covariates], axis=1)
    rests = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b)]
    return stats.pearsonr(*rests).statistic


@pytest.mark.parametrize("prop", ["foreground", "depth"])
@pytest.mark.parametrize("whole", [(), (1, 4)])
def test_scores_equal_scipy_and_scikit_learn_on_measured_pixels(prop, whole):
    rng = np.random.default_rng(0)
    truth, tokens = rng.random((6, *SIZE)), rng.random((6, *GRID))
    if prop == "foreground":
        truth = truth > 0.5
    cut = 0.5 if prop == "foreground" else None
    truth = holes(truth, 5, whole)
    mean = rng.random(SIZE)
    big = upsample(tokens, SIZE)
    expected = expected_scores(prop, big, truth, mean)
    blocks = BlockScorer(prop, truth, mean, GRID).scores(tokens, cut)
    np.testing.assert_allclose(blocks, expected, atol=1e-6)
    at_full_size = metrics.score_maps(prop, big, truth, mean, GRID, cut)
    np.testing.assert_allclose(at_full_size, expected, atol=1e-6)
    full = rng.random((6, *SIZE))
    full = full > 0.5 if prop == "foreground" else full
    found = metrics.HeadlineScorer(prop, truth).score(full)
    np.testing.assert_allclose(found, expected_scores(prop, full, truth, mean)[0], atol=1e-6)


def test_scores_of_a_sample_without_measured_pixels_are_undefined():
    truth = np.full((2, 2, 2), np.nan)
    truth[1] = [[0, 1], [2, 3]]
    found = score_measured(metrics.rmse, np.zeros((2, 2, 2)), truth)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(np.sqrt(3.5))


def test_position_cut_is_chosen_on_measured_pixels(data):
    masks = data[1]["foreground"]
    mean = mean_map(masks)
    candidates = [-1, *np.quantile(mean, np.arange(64) / 64)]
    scores = []
    for cut in candidates:
        by_map = [
            f1_score(m[~np.isnan(m)], (mean > cut)[~np.isnan(m)], zero_division=1) for m in masks
        ]
        scores.append(np.mean(by_map))
    assert position_cut(mean, masks) == candidates[int(np.argmax(scores))]


def test_cuts_of_a_cell_have_the_best_dice_on_measured_training_pixels(data, labels):
    activations, maps = data
    study = study_of(["ridge", "logistic", "adam"], mlp=True)
    result = probe_activations(activations, labels, study)["true"]
    masks = maps["foreground"][labels.train]
    known = ~np.isnan(masks)

    def mean_dice(predicted, cut):
        by_map = [
            f1_score(m[k], p[k] > cut, zero_division=1)
            for m, p, k in zip(masks, predicted, known, strict=True)
        ]
        return np.mean(by_map)

    for kind in ("ridge", "logistic"):
        probe = result.probes[kind, "foreground"]
        tokens = probe.predict(activations[labels.train])
        big = upsample(tokens, SIZE)
        candidates = [tokens.min() - 1, *np.quantile(tokens, np.arange(64) / 64)]
        best = max(mean_dice(big, cut) for cut in candidates)
        assert mean_dice(big, probe.cut) == pytest.approx(best, abs=1e-12)
        assert best > mean_dice(big, tokens.max())
    assert result.probes["adam", "foreground"].cut == 0
    assert np.isnan(result.probes["ridge", "depth"].cut)


def test_cell_scores_of_held_out_samples_leave_out_pixels_not_measured(data, labels):
    activations, maps = data
    study = study_of(["ridge", "logistic", "adam"], mlp=True)
    result = probe_activations(activations, labels, study)["true"]
    for row, kind in enumerate(study.kinds):
        for prop in ("foreground", "depth"):
            if (kind, prop) not in result.probes:
                continue
            tokens = result.probes[kind, prop].predict(activations[labels.heldout])
            probe = result.probes[kind, prop]
            cut = 0 if kind == "mlp" else probe.cut
            truth, big = maps[prop][labels.heldout], upsample(tokens, SIZE)
            expected = expected_scores(prop, big, truth, labels.means[prop], cut)
            np.testing.assert_allclose(result.scores[prop][row], expected, atol=1e-5)


def test_masks_stored_as_floats_are_scored_where_every_pixel_is_measured():
    """Another mask of the array, such as one of a training sample, has unmeasured pixels."""
    rng = np.random.default_rng(4)
    masks = rng.random((3, 6, 12)) > 0.5
    predicted = rng.random((3, 6, 12)) > 0.5
    expected = metrics.dice(predicted, masks)
    np.testing.assert_array_equal(
        score_measured(metrics.dice, predicted, masks.astype(np.float32)), expected
    )
    np.testing.assert_allclose(
        expected, [f1_score(m.ravel(), p.ravel()) for m, p in zip(masks, predicted, strict=True)]
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_measured_finds_nan_of_either_sign_and_takes_infinity_as_measured(dtype):
    maps = np.array([[[-np.inf, np.inf, -0.0, 65504]]], dtype)
    assert measured(maps) is None
    assert measured(maps[:0]) is None
    for nan in (np.nan, -np.nan):
        known = measured(np.concatenate([maps, np.full((1, 1, 4), nan, dtype)]))
        assert known is not None
        assert known.tolist() == [[[True] * 4], [[False] * 4]]
        strided = np.full((2, 2, 2), nan, dtype)
        strided[::2] = 1
        assert measured(strided[::2]) is None
        assert not measured(strided[1::2]).any()
