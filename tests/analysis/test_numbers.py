"""Properties of one number per image: scores against SciPy, and a study of a user's own number."""

import sys

import numpy as np
import pytest
from run_helpers import carry_out
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.numbers import best_correlated, rank_correlation
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.probing.inference.permutation import permute_groups
from ldmprobe_core.study.samples import make_samples

MODULE = """
import numpy as np

calls = []

def redness(images):
    calls.append(len(images))
    return images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2))

def same(images):
    return np.full(len(images), 2.0)

def wrong(images):
    return images[..., 0]
"""


def test_rank_correlation_of_resamples_equals_that_of_scipy_on_repeated_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    b[:15] = np.round(a[:15] + b[:15])  # ties
    a[3] = np.nan
    counts = rng.integers(0, 4, size=(6, 30))
    given = rank_correlation(counts.astype(float), a, b)
    for row, value in zip(counts, given, strict=True):
        drawn = [i for i in range(30) for _ in range(row[i]) if i != 3]
        assert value == pytest.approx(stats.spearmanr(a[drawn], b[drawn]).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(counts[:1].astype(float), a, np.ones(30))).all()


def test_number_is_not_chosen_by_the_correlation_of_few_prompts():
    rng = np.random.default_rng(1)
    truth, prompts = rng.normal(size=36), np.arange(36) // 2
    cells = np.full((2, 2, 36), np.nan)
    cells[1, 1] = truth + 0.3 * rng.normal(size=36)
    cells[0, 0] = rng.normal(size=36)
    cells[0, 1, 6:8] = truth[6:8]  # two images of one prompt, in their order
    cells[1, 0, :8] = truth[:8]  # four prompts
    assert best_correlated(cells, truth, prompts) == (1, 1)
    # Of few validation prompts in all, the cells that are defined in all of them are compared.
    few = slice(8)
    assert best_correlated(cells[..., few], truth[few], prompts[few]) == (1, 0)


@pytest.fixture
def module(own_module):
    own_module("reds_of_hers", MODULE)


def redness_study(tiny_study, labeler="redness", **more):
    return tiny_study(**{
        "properties": {"redness": {"kind": "number", "labeler": f"reds_of_hers:{labeler}"}},
        "labels": {"depth": None, "shading": None, "class": None},
        "probes": {"kinds": ["ridge"], "penalties": [0.1]},
        "controls": {"permuted_weights": False, "permutations": 3},
    } | more)  # fmt: skip


def test_declared_number_is_probed_from_mean_activations(tiny_study, tmp_path, module):
    numbers = {
        name: {"kind": "number", "labeler": f"reds_of_hers:{name}"} for name in ("redness", "same")
    }
    study = redness_study(tiny_study, properties=numbers)
    run = carry_out(study, str(tmp_path / "runs"))
    build_report(run, {})
    # One trial image, finished images only, and the first one once more, alone.
    assert sum(sys.modules["reds_of_hers"].calls) == 14
    images = run.read("images", "image").astype(float)
    values = (images[..., 0] - images[..., 2]).mean((1, 2))
    np.testing.assert_allclose(run.read("labels", "redness"), values, rtol=1e-5)

    summary = load_summary(run)
    record = summary.numbers["redness"]
    assert list(summary.properties) == ["foreground"]
    assert set(record.inputs) == {"latents", "clean_pixels"} == set(record.above_inputs)
    assert (len(record.steps), len(record.shuffled)) == (3, 3)
    assert record.p in (0.25, 0.5, 0.75, 1.0)
    assert record.prompt is not None

    # By hand: scikit-learn's regression from the mean activations of every cell.
    split = np.array([sample.split for sample in make_samples(study)])
    train, validation, test = (split == part for part in ("train", "validation", "test"))

    def predicted(features, numbers=values):
        alpha = 0.1 * features[train].var(0).mean() * train.sum()
        return Ridge(alpha=alpha).fit(features[train], numbers[train]).predict(features)

    scores = {}
    for layer in run.layers:
        means = run.read(f"activations/{layer}", "activation").mean((2, 3), dtype=np.float64)
        for step in (1, 2, 3):
            guess = predicted(means[:, step - 1])
            scores[layer, step] = [
                stats.spearmanr(guess[part], values[part]).statistic for part in (validation, test)
            ]
    best = max(scores, key=lambda cell: scores[cell][0])
    assert (record.best.layer, record.best.step) == best
    assert record.best.spearman.mean == pytest.approx(scores[best][1])
    of_layer = [scores[best[0], step][1] for step in (1, 2, 3)]
    assert [value.mean for value in record.steps] == pytest.approx(of_layer)
    prompt = predicted(run.read("prompts", "embedding").astype(np.float64))
    of_prompt = stats.spearmanr(prompt[test], values[test]).statistic
    assert record.prompt.mean == pytest.approx(of_prompt)
    assert record.above_prompt.mean == pytest.approx(scores[best][1] - of_prompt)

    # Each permutation has its own best layer and step, as the true numbers have.
    prompts = np.array([sample.group for sample in make_samples(study)])
    rng = np.random.default_rng(study.prompts.seed)
    for given in record.shuffled:
        shuffled, chosen = values[permute_groups(prompts, rng)], []
        for layer in run.layers:
            means = run.read(f"activations/{layer}", "activation").mean((2, 3), dtype=np.float64)
            for step in range(3):
                guess = predicted(means[:, step], shuffled)
                chosen.append([
                    stats.spearmanr(guess[part], shuffled[part]).statistic
                    for part in (validation, test)
                ])  # fmt: skip
        assert given == pytest.approx(max(chosen, key=lambda pair: pair[0])[1])
    page = run.location.read_text("report/index.html")
    assert "Numbers per image" in page
    assert "redness" in page

    # A number that is the same for all images has no correlation, and no p value.
    constant = summary.numbers["same"]
    assert constant.best.spearman.mean is None
    assert (constant.shuffled, constant.p) == ([None] * 3, None)
    assert "<td>same</td>" in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"capture": {"keep": "statistics"}}, r"labels\.redness: .*capture\.keep is statistics"),
        ({"labels": {"redness": "maps"}}, "redness is 'maps', .* redness is not a map"),
        (
            {"source": "images", "images": {"folder": "x", "missing": {"redness": 0}}},
            r"images\.missing: redness has no maps\. Fix: use one of foreground",
        ),
    ],
)
def test_number_that_cannot_be_probed_is_refused_before_the_run(tiny_study, module, more, words):
    with pytest.raises(UserError, match=words):
        plan_study(redness_study(tiny_study, **more))


def test_number_labeler_that_returns_maps_is_refused(tiny_study, tmp_path, module):
    with pytest.raises(UserError, match=r"returned shape \(\d+, \d+, \d+\) .* one number, or"):
        carry_out(redness_study(tiny_study, "wrong"), str(tmp_path / "runs"))
