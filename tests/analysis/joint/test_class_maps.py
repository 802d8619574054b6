"""Joint scores of class maps: IoU of classes, and a study of a user's own class map."""

import sys

import numpy as np
import pytest
from joint_probes import (
    BOOTSTRAP,
    CHOSEN,
    IS_TEST,
    WITHOUT_LATENTS,
    GivenProbes,
    given_tokens,
)
from run_helpers import carry_out
from scipy import stats
from sklearn.metrics import jaccard_score

import ldmprobe as lp
from ldmprobe_core.analysis.joint import class_maps
from ldmprobe_core.analysis.joint.class_maps import (
    best_overlap,
    class_iou,
    class_map_records,
    mean_iou,
    overlap,
    paired,
)
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.neighbourhood import neighbourhoods
from ldmprobe_core.study.extensions.joint import components_of
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import make_samples

MODULE = """
import numpy as np

calls = []

def tones(images):
    calls.append(len(images))
    grey = images.astype(np.float32).mean(-1)
    return np.digitize(grey, np.quantile(grey, [0.3, 0.7]))

def wrong(images):
    return np.full(images.shape[:3], 3)
"""


def one_hot(classes, n):
    return (classes[..., None] == np.arange(n)).astype(float)


def test_overlap_gives_the_jaccard_scores_of_scikit_learn():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, 2, 4, 3))
    classes = rng.integers(3, size=(5, 6, 8))
    predicted = tokens.argmax(-1).repeat(3, 1).repeat(2, 2)
    overlaps = overlap(tokens, one_hot(classes, 3)).mean(-1)[None]
    expected = jaccard_score(classes.ravel(), predicted.ravel(), average=None)
    np.testing.assert_allclose(class_iou(overlaps)[0], expected, rtol=1e-12)
    assert mean_iou(overlaps)[0] == pytest.approx(expected.mean(), rel=1e-12)


def test_overlap_leaves_out_unmeasured_pixels_images_without_prediction_and_absent_classes():
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(4, 2, 2, 4))
    tokens[..., 3] = -np.inf  # never predicted, and never labeled
    classes = rng.integers(3, size=(4, 4, 4))
    truth = one_hot(classes, 4)
    measured = rng.random(classes.shape) < 0.7
    truth[~measured] = np.nan
    tokens[2] = np.nan
    overlaps = overlap(tokens, truth)
    assert np.isnan(overlaps[..., 2]).all()
    kept = [0, 1, 3]
    predicted = tokens.argmax(-1).repeat(2, 1).repeat(2, 2)
    which = measured[kept]
    expected = jaccard_score(classes[kept][which], predicted[kept][which], average=None)
    means = overlaps[..., kept].mean(-1)[None]
    np.testing.assert_allclose(class_iou(means)[0], [*expected, np.nan], rtol=1e-12)
    assert mean_iou(means)[0] == pytest.approx(expected.mean(), rel=1e-12)


def test_two_predictions_are_compared_in_the_classes_that_are_labeled():
    # The labels have the classes 0 and 1 alone.  The better prediction has class 2 at one token.
    classes = np.tile([[0, 1], [1, 0]], (20, 1, 1))
    better, worse = classes.copy(), classes.copy()
    better[0, 0, 0] = 2
    worse[:5, 0, 0] = 1
    truth = one_hot(classes, 3)
    of_better, of_worse = (overlap(one_hot(one, 3), truth) for one in (better, worse))
    means = np.stack([of_better.mean(-1), of_worse.mean(-1)])
    # By hand, of 40 tokens of each class: 39 of class 0 and all of class 1 are hit; 35 of class 0,
    # and all of class 1 with five tokens too many.
    expected = [[39 / 40, 40 / 40, np.nan], [35 / 40, 40 / 45, np.nan]]
    np.testing.assert_allclose(class_iou(means), expected, rtol=1e-12)
    np.testing.assert_allclose(mean_iou(means), np.nanmean(expected, 1), rtol=1e-12)
    assert best_overlap([of_worse, of_better]) == 1


def test_interval_of_a_ratio_is_that_of_resampled_sums():
    rng = np.random.default_rng(2)
    bootstrap = Bootstrap(np.arange(40), 400, 0.9, seed=0)
    values = rng.random((2, 40))
    given = bootstrap.interval_of(values, lambda means: means[:, 0] / means[:, 1])
    (counts,) = bootstrap.counts
    ratios = []
    for drawn in counts:
        sample = np.repeat(np.arange(40), drawn.astype(int))
        ratios.append(values[0, sample].sum() / values[1, sample].sum())
    assert given.mean == pytest.approx(values[0].sum() / values[1].sum())
    # The tails are those of the expanded percentile interval of 40 prompts.
    tail = stats.norm.cdf((40 / 39) ** 0.5 * stats.t.ppf(0.05, 39))
    assert (given.low, given.high) == pytest.approx(np.quantile(ratios, [tail, 1 - tail]))


def test_difference_of_equal_predictions_is_zero_where_one_is_undefined_in_some_images():
    rng = np.random.default_rng(3)
    overlaps = rng.uniform(0.2, 1, (2, 3, 40))
    overlaps[0] = overlaps[1] * np.linspace(0.1, 0.9, 40)  # the first images are read worst
    other = overlaps.copy()
    other[..., :20] = np.nan
    both = paired(overlaps, other)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(np.isfinite(both).all((0, 1, 2)), np.arange(40) >= 20)


def test_cell_that_is_defined_in_one_easy_image_is_not_the_best():
    truth = one_hot(np.tile([0, 1], 32).reshape(8, 2, 4), 2)
    half = truth.copy()
    half[:4] = half[:4, ..., ::-1]
    easy = np.full_like(truth, np.nan)
    easy[5] = truth[5]
    cells = [overlap(tokens, truth) for tokens in (1 - truth, easy, half)]
    assert best_overlap(cells) == 2
    assert best_overlap(cells[:2]) == 0
    assert best_overlap(cells[1:2]) == 0


def iou(predicted, truth):
    return jaccard_score(truth.ravel(), predicted.ravel(), average="macro")


def test_cells_are_chosen_on_validation_samples_and_differences_are_best_less_other(monkeypatch):
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=(32, 2, 2))
    tokens, classes = given_tokens(one_hot(true, 3)), true.repeat(2, 1).repeat(2, 2)
    mean = rng.random((4, 4, 3))
    # A fifth of the labels are wrong.
    exact = np.where(rng.random((20, 4, 4)) < 0.2, 2 - classes[IS_TEST], classes[IS_TEST])
    probes = GivenProbes(
        ("dark", "mid", "light"), tokens, one_hot(classes, 3), mean, one_hot(exact, 3)
    )
    probes.put_into(class_maps, monkeypatch)
    record = class_map_records(probes.run, probes.labels, IS_TEST, BOOTSTRAP)["given"]

    def predicted(name, step):
        return tokens[name][step - 1, IS_TEST].argmax(-1).repeat(2, 1).repeat(2, 2)

    truth, usual = classes[IS_TEST], np.broadcast_to(mean.argmax(-1), (20, 4, 4))
    best, latents = (predicted(name, CHOSEN[name]) for name in ("b", "latents"))
    has_latents = np.ones(32, bool)
    has_latents[WITHOUT_LATENTS] = False
    has_latents = has_latents[IS_TEST]
    of_latents = iou(latents[has_latents], truth[has_latents])
    assert (record.best.layer, record.best.step) == ("b", CHOSEN["b"])
    assert record.inputs["latents"].step == CHOSEN["latents"]
    for given, expected in [
        (record.best.mean_iou, iou(best, truth)),
        (record.inputs["latents"].mean_iou, of_latents),
        (record.position, iou(usual, truth)),
        (record.above_position, iou(best, truth) - iou(usual, truth)),
        # Both sides are of the images for which the control has predictions.
        (record.above_inputs["latents"], iou(best[has_latents], truth[has_latents]) - of_latents),
        (record.exact.best, iou(best, exact)),
        (record.exact.position, iou(usual, exact)),
        (record.exact.labeler, iou(truth, exact)),
    ]:
        assert given.mean == pytest.approx(expected, rel=1e-12)
    of_steps = [iou(predicted("b", step), truth) for step in (1, 2, 3)]
    np.testing.assert_allclose([one.mean for one in record.steps], of_steps, rtol=1e-12)


@pytest.fixture
def module(own_module):
    own_module("tones_of_his", MODULE)


def tone_study(tiny_study, labeler):
    return tiny_study(
        properties={"tone": {"kind": "classes", "classes": ["dark", "mid", "light"],
                             "labeler": f"tones_of_his:{labeler}"}},
        labels={"foreground": None, "depth": None, "shading": None, "class": None},
        probes={"kinds": ["ridge"]},
        controls={"permuted_weights": False, "permutations": 2, "clean_pixels": False},
    )  # fmt: skip


def test_declared_class_map_is_probed_by_class_and_scored_together(tiny_study, tmp_path, module):
    study = tone_study(tiny_study, "tones")
    parts = ["tone_dark", "tone_mid", "tone_light"]
    assert list(components_of("tone")) == parts
    assert {property_of(part).kind for part in parts} == {"mask"}
    run = carry_out(study, str(tmp_path / "runs"))
    build_report(run, {})
    # After one trial image, every image was labeled once, for all three classes, and the first one
    # once more, alone.
    chosen = run.open("step_images").sizes["sample"]
    assert sum(sys.modules["tones_of_his"].calls) == 1 + 12 + 1 + chosen * (2 + 3)
    maps = np.stack([run.read("labels", part) for part in parts], -1)
    np.testing.assert_array_equal(maps.sum(-1), 1)

    record = load_summary(run).class_maps["tone"]
    assert (record.components, record.kind, record.exact) == (parts, "ridge", None)
    assert set(record.inputs) == {"latents"} == set(record.above_inputs)
    assert len(record.steps) == 3

    # By hand: the classes that the stored probes predict in the best cell, token by token.
    best, split = record.best, [sample.split for sample in make_samples(study)]
    activations = run.read(f"activations/{best.layer}", "activation")[:, best.step - 1]
    probes = [lp.open_run(run.url).probe(part, best.step, best.layer) for part in parts]
    labels, predicted, usual = [], [], []
    counts = maps[[i for i, part in enumerate(split) if part == "train"]].sum(0)
    for sample in (i for i, part in enumerate(split) if part == "test"):
        tokens = activations[sample].astype(float)
        for y, x in np.ndindex(*maps.shape[1:3]):
            row, column = (y * len(tokens) // maps.shape[1], x * len(tokens) // maps.shape[2])
            values = [
                tokens[row, column] @ probe.weight
                + np.broadcast_to(probe.offset, tokens.shape[:2])[row, column]
                for probe in probes
            ]
            labels.append(maps[sample, y, x].argmax())
            predicted.append(np.argmax(values))
            usual.append(counts[y, x].argmax())
    by_class = jaccard_score(labels, predicted, average=None, labels=[0, 1, 2])
    given = [best.by_class[part].mean for part in parts]
    np.testing.assert_allclose(given, by_class, rtol=1e-6)
    assert best.mean_iou.mean == pytest.approx(by_class.mean(), rel=1e-6)
    baseline = jaccard_score(labels, usual, average="macro")
    assert record.position.mean == pytest.approx(baseline, rel=1e-6)
    assert record.above_position.mean == pytest.approx(by_class.mean() - baseline, rel=1e-6)

    # The latents at their own step, compared with the layer: mean IoU of the layer less theirs.
    step = record.inputs["latents"].step
    test = [i for i, part in enumerate(split) if part == "test"]
    tokens = neighbourhoods(
        run.read("activations/latents", "activation")[test, step - 1].astype(float), 5
    )
    probes = [lp.open_run(run.url).probe(part, step, "latents") for part in parts]
    guess = np.stack([tokens @ p.weight + p.offset for p in probes], -1).argmax(-1)
    guess = np.kron(guess, np.ones((1, *(np.array(maps.shape[1:3]) // guess.shape[1:])), int))
    of_latents = jaccard_score(labels, guess.ravel(), average="macro")
    assert record.inputs["latents"].mean_iou.mean == pytest.approx(of_latents, rel=1e-6)
    gap = by_class.mean() - of_latents
    assert abs(gap) > 0.01
    assert record.above_inputs["latents"].mean == pytest.approx(gap, rel=1e-6)
    page = run.location.read_text("report/index.html")
    assert "tone_dark" in page
    assert "Class maps" in page


def test_class_map_with_values_that_are_no_classes_is_refused(tiny_study, tmp_path, module):
    with pytest.raises(UserError, match=r"labels\.tone: .* returned 3, .* from 0 to 2"):
        carry_out(tone_study(tiny_study, "wrong"), str(tmp_path / "runs"))


@pytest.mark.parametrize("classes", [None, [], ["one"], ["a", "a"], "ab"])
def test_class_map_needs_two_names(tiny_study, classes):
    with pytest.raises(UserError, match=r"classes of tone are .*two or more classes"):
        tiny_study(properties={"tone": {"kind": "classes", "classes": classes}})
