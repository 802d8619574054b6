"""Differences to controls that are refitted to halves or parts of the training samples."""

from types import SimpleNamespace

import numpy as np
import pytest
from cell_data import small_cell
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.controls.coverage import Coverage
from ldmprobe_core.analysis.controls.training_size import training_halves
from ldmprobe_core.analysis.parts.property_part import PropertyPart
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import property_of

TOKENS, LABELS = small_cell()
IS_TEST = LABELS.heldout >= 28
PROMPTS = np.arange(40) // 2
PENALTY = 0.1
PART = np.flatnonzero(np.arange(40) % 5 > 0)
"""Samples of the controls that are computed on a part of the samples."""

STEPS = {"a": [1, 2, 3], "b": [1, 2, 3], "latents": [1, 2, 3], "clean_pixels": [2, 3]}
SIZES = {"latents": 5, "clean_pixels": 3}
"""Heights and widths of the neighbourhoods of tokens that input controls show their probes."""

BEST = ("plain_ridge", 1, "b")
OWN_BEST = {"latents": ("ridge", 3, "latents"), "clean_pixels": ("plain_ridge", 2, "clean_pixels")}
KINDS = ["ridge", "plain_ridge"]


def stored_activations():
    """Activations (step, stored sample, y, x, channel) by input, with other noise in each cell."""
    rng, stored = np.random.default_rng(5), {}
    for name, steps in STEPS.items():
        shape = (len(steps), *TOKENS.shape)
        noise = rng.normal(0, rng.uniform(0.5, 2, (len(steps), 1, 1, 1, 1)), shape)
        stored[name] = (TOKENS + noise).astype(np.float16)
    for name in SIZES:
        stored[name] = stored[name][..., :2]
    stored["clean_pixels"] = stored["clean_pixels"][:, PART]
    return stored


STORED = stored_activations()


def made_up_run():
    def samples(name):
        return PART if name == "clean_pixels" else np.arange(40)

    def read(group, array, step=None, sample=None):
        name = group.removeprefix("activations/")
        if array == "activation":
            return STORED[name][step][sample]
        return samples(name) if array == "sample" else np.array(STEPS[name])

    off = {"foreground": None, "shading": None, "class": None}
    return SimpleNamespace(
        study=parse_study(
            {
                "labels": off,
                "controls": {"prompt": False},
                "probes": {"kinds": KINDS, "penalties": [PENALTY]},
            }
        ),
        layers=["a", "b"],
        n_stored=40,
        samples=[SimpleNamespace(group=int(prompt)) for prompt in PROMPTS],
        read=read,
        open=lambda _: SimpleNamespace(sizes={"y": 4, "x": 4}),
    )


def made_up_scores():
    """Random scores, raised in the cells `BEST` and `OWN_BEST`, and in one of permuted weights."""
    rng, prop = np.random.default_rng(6), property_of("depth")
    scores = rng.uniform(0.1, 0.2, (2, 2, len(prop.metrics), 3, 2, 20))
    scores[0, 1, :, 0, 1] += 0.5
    scores[1, 0, :, 2, 0] += 0.3
    inputs = {name: rng.uniform(0.1, 0.2, (2, len(prop.metrics), 3, 20)) for name in SIZES}
    inputs["latents"][0, :, 2] += 0.2
    inputs["clean_pixels"][:, :, 0] = np.nan
    inputs["clean_pixels"][1, :, 1] += 0.2
    counts = {"train": 16, "validation": 6, "test": 10}
    part = Coverage(PART, counts, np.isin(LABELS.heldout, PART))
    return PropertyScores(
        prop=prop,
        kinds=KINDS,
        layers=["a", "b"],
        conditions=["probe", "permuted_weights"],
        controls=["permuted_weights"],
        scores=scores,
        inputs=inputs,
        draws={},
        is_test=IS_TEST,
        validation_groups=PROMPTS[LABELS.heldout[~IS_TEST]],
        bootstrap=Bootstrap(PROMPTS[LABELS.heldout[IS_TEST]], 50, 0.95, 0),
        covered={"clean_pixels": part, "permuted_weights": part},
        input_steps={"clean_pixels": np.array([1, 2])},
    )


SCORES = made_up_scores()


def features_of(step, name):
    """Features of all samples; NaN for samples without any, and zeros beyond the edges."""
    activations = np.full((40, 4, 4, STORED[name].shape[-1]), np.nan)
    members = PART if name == "clean_pixels" else np.arange(40)
    activations[members] = STORED[name][STEPS[name].index(step)]
    reach = SIZES.get(name, 1) // 2
    padded = np.pad(activations, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    of_tokens = [
        padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1].reshape(40, -1)
        for y, x in np.ndindex(4, 4)
    ]
    return np.stack(of_tokens, 1).reshape(40, 4, 4, -1)


def refit_score(cell, members):
    """Rank correlations of all test samples, by scikit-learn's probe of some training samples.

    The position term stays that of all training samples.
    """
    kind, step, name = cell
    features, maps = features_of(step, name), LABELS.maps["depth"]
    y = maps.reshape(40, 4, 2, 4, 2).mean((2, 4))
    term = y[LABELS.train].mean(0) if kind == "ridge" else np.zeros((4, 4))
    x = features[members].reshape(-1, features.shape[-1])
    alpha = PENALTY * x.var(0).mean() * len(x)
    fit = Ridge(alpha=alpha).fit(x, (y[members] - term).ravel())
    scores = []
    for sample in LABELS.heldout[IS_TEST]:
        if np.isnan(features[sample]).any():
            scores.append(np.nan)
            continue
        predicted = fit.predict(features[sample].reshape(16, -1)).reshape(4, 4) + term
        full = predicted.repeat(2, 0).repeat(2, 1)
        scores.append(stats.spearmanr(full.ravel(), maps[sample].ravel()).statistic)
    return np.array(scores)


@pytest.fixture(scope="module")
def corrected():
    return PropertyPart.compute(made_up_run(), SCORES, LABELS, IS_TEST).corrected


@pytest.mark.parametrize("name", SIZES)
def test_difference_to_an_input_control_is_corrected_by_refits_of_both_to_halves(corrected, name):
    """Each side is refitted in its own best cell: twice the difference less that of the halves."""
    train = LABELS.train
    of_probe = SCORES.scores[0, 1, 0, 0, 1, IS_TEST]
    if name == "clean_pixels":
        train = np.intersect1d(train, PART)
        of_probe = refit_score(BEST, train)
    kind, step, _ = OWN_BEST[name]
    difference = of_probe - SCORES.inputs[name][KINDS.index(kind), 0, step - 1, IS_TEST]
    halves = training_halves(train, PROMPTS, made_up_run().study.prompts.seed)
    of_halves = np.array(
        [refit_score(BEST, half) - refit_score(OWN_BEST[name], half) for half in halves]
    )
    expected = 2 * difference - of_halves.mean(0)
    np.testing.assert_allclose(corrected[name].values, expected, atol=1e-5)
    assert np.isnan(expected).sum() == (2 if name == "clean_pixels" else 0)
    error = np.nanmean(of_halves, axis=1).std()
    assert corrected[name].error == pytest.approx(error, abs=1e-5)
    assert error > 1e-3


def test_probe_is_refitted_to_the_samples_of_permuted_weights(corrected):
    of_probe = refit_score(BEST, np.intersect1d(LABELS.train, PART))
    expected = of_probe - SCORES.scores[1, 0, 0, 2, 0, IS_TEST]
    expected[~np.isin(LABELS.heldout[IS_TEST], PART)] = np.nan
    np.testing.assert_allclose(corrected["permuted_weights"].values, expected, atol=1e-5)
    assert corrected["permuted_weights"].error == 0
