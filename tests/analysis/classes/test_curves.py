"""Class curves against a loop, and photographs against the labeler itself."""

import numpy as np
import pytest
from PIL import Image
from run_helpers import carry_out, small_study

from ldmprobe_core.analysis.classes.curves import class_curves, first_stable_step
from ldmprobe_core.analysis.classes.photographs import classify_photographs
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers import tabletop
from ldmprobe_core.labelers.registry import register_labeler
from ldmprobe_core.pipeline.labels import top_classes
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene


def test_first_stable_step_is_the_first_from_which_a_class_leads_and_stays():
    a, b = [0.9, 0.1], [0.2, 0.8]
    scores = np.array([[a, a, a, a], [b, a, b, a], [b, b, b, a], [a, a, a, b], [b, b, b, b]])
    found = first_stable_step(scores, np.zeros(5, int))
    np.testing.assert_array_equal(found, [1, 4, 4, np.nan, np.nan])
    np.testing.assert_array_equal(
        first_stable_step(scores[:, :1], np.ones(5, int)), [np.nan, 1, 1, np.nan, 1]
    )


def test_a_class_that_ties_with_another_one_is_not_recognised():
    a, tie = [0.9, 0.1, 0.0], [0.5, 0.5, 0.0]
    scores = np.array([[tie, tie, tie], [a, tie, a], [a, a, tie], [a, a, a]])
    np.testing.assert_array_equal(top_classes(scores[1]), [0, -1, 0])
    found = first_stable_step(scores, np.zeros(4, int))
    np.testing.assert_array_equal(found, [np.nan, 3, np.nan, 1])
    undefined = first_stable_step(scores, np.full(4, -1))
    assert np.isnan(undefined).all()


@pytest.mark.parametrize("by_prompt", [True, False])
def test_a_labeler_that_tells_no_classes_apart_recognises_nothing(tiny_study, tmp_path, by_prompt):
    """The first class was recognised in every image, if its probability equals all others'."""

    def undecided(images):
        return np.full((len(images), 2), 0.5)

    undecided.classes = ("ball", "thing")
    register_labeler("class", "undecided")(undecided)
    rows = [f"a {color} ball,1,{'ball' if by_prompt else ''}" for color in "abcdef"]
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt,seed,class", *rows]))
    study = tiny_study(
        prompts={"files": str(tmp_path / "prompts.csv"), "samples": None},
        labels={"class": "undecided", "depth": None, "shading": None},
    )
    found = class_curves(carry_out(study, str(tmp_path / "runs")))
    assert found.by_prompt == by_prompt
    assert (found.recognized, found.recognized_clean) == (0, 0)
    assert found.accuracy is None if not by_prompt else found.accuracy.mean == 0
    assert {share for shares in found.agreement.values() for share in shares} <= {0, None}


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    return carry_out(small_study("classes", tiny_model, 12), str(tmp_path_factory.mktemp("c")))


def test_class_curves_equal_a_slow_loop(run):
    found = class_curves(run)
    final = run.read("labels", "class_score")
    categories = [str(c) for c in run.open("samples").category.values]
    assert found.by_prompt
    right = [CATEGORIES.index(c) for c in categories]
    assert found.accuracy.mean == pytest.approx(np.mean(final.argmax(1) == right))
    assert found.confident == pytest.approx(np.mean([row.max() > 0.9 for row in final]))
    for source in ("trajectory", "clean"):
        scores = run.read(f"labels_{source}", "class_score")
        steps = []
        for curve, wanted in zip(scores, right, strict=True):
            step = None
            for t in reversed(range(len(curve))):
                if curve[t].argmax() != wanted:
                    break
                step = t + 1
            steps.append(np.nan if step is None else step)
        if np.isfinite(steps).any():
            assert found.recognition_step[source].mean == pytest.approx(np.nanmean(steps))
        else:
            assert found.recognition_step[source].mean is None
        share = found.recognized if source == "trajectory" else found.recognized_clean
        assert share == pytest.approx(np.isfinite(steps).mean())
        agree = [(scores[:, t].argmax(1) == final.argmax(1)).mean() for t in range(3)]
        assert found.agreement[source] == pytest.approx(agree)


def test_class_curves_without_classes_use_the_class_of_the_finished_image(tiny_study, tmp_path):
    study = tiny_study(prompts={"items": [f"a thing {i}" for i in range(6)], "samples": 6})
    run = carry_out(study, str(tmp_path))
    found = class_curves(run)
    assert not found.by_prompt
    assert found.accuracy is None
    assert found.recognized == 1.0


def test_class_curves_of_own_images_use_the_same_labeler(run, tmp_path, monkeypatch):
    pictures = []
    for i in range(5):
        rgb = np.rint(render(sample_scene(8_000_000 + i)).rgb * 255).astype(np.uint8)
        Image.fromarray(rgb).resize((16, 16), Image.Resampling.LANCZOS).save(tmp_path / f"{i}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{i}.png")))
    found = classify_photographs(run, str(tmp_path))
    import torch

    scores = tabletop.load_classes(LabelerSpec(name="tabletop"), torch.device("cpu"))(
        np.stack(pictures)
    )
    assert found.count == 5
    assert found.top == pytest.approx(scores.max(1).mean(), rel=1e-5)
    assert found.confident == pytest.approx((scores.max(1) > 0.9).mean())
    assert sum(found.classes.values()) == 5
    assert found.known == 12
    assert [row.name for row in found.photographs] == [f"{i}.png" for i in range(5)]
    for row, of_picture in zip(found.photographs, scores, strict=True):
        assert row.category == CATEGORIES[of_picture.argmax()]
        assert row.probability == pytest.approx(of_picture.max(), rel=1e-5)
    assert class_curves(run).photographs.count == 5
    monkeypatch.setattr(tabletop.ClassLabeler, "__call__", lambda _, images: np.full((5, 12), 0.5))
    assert classify_photographs(run, str(tmp_path)).classes == {"(tie)": 5}
    with pytest.raises(UserError, match="there is no such folder"):
        classify_photographs(run, str(tmp_path / "none"))
    module = "ldmprobe_core.analysis.classes.photographs.load_labeler"
    for value, words in ((np.nan, "NaN or infinite"), (7.0, "class probabilities range from 7")):
        monkeypatch.setattr(module, lambda *_, v=value: lambda images: np.full((len(images), 2), v))
        with pytest.raises(RunError, match=rf"labels\.class: .*{words}"):
            classify_photographs(run, str(tmp_path))
