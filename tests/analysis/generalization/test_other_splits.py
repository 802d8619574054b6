"""Conclusions of other splits (benchmarks/resplits.py) against counts by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.resplits import Conclusion, Split, conclude, figures_of
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import Crossing
from ldmprobe_core.probing.label_set import LabelSet

STEPS = 9
TRAIN, VALIDATION, TEST = np.arange(12), np.arange(12, 24), np.arange(24, 48)


def at(step, low, high, determined=True):
    return Crossing(step=step, low=low, high=high, determined=determined)


def test_other_splits_are_counted_against_the_printed_intervals():
    printed = SimpleNamespace(
        not_beyond=("prompt",),
        emergence=SimpleNamespace(
            probe=SimpleNamespace(
                relative=SimpleNamespace(onset=at(2, 1, 3), settled=at(6, 5, None, False))
            )
        ),
    )
    onsets = [at(2, 1, 2), at(4, 3, 6), at(5, 4, 9, False), Crossing()]
    settled = [at(6, 5, 8), at(3, 2, 4), at(None, 9, None, False), at(4, 3, 5)]
    alone = [at(2, 2, 2), at(4, 4, 4), at(5, 4, 6), Crossing()]
    controls = [set(), {"prompt"}, {"prompt", "latents"}, set()]
    found = [
        Conclusion(layer, {"onset": a, "settled": b}, {"onset": c, "settled": b}, frozenset(names))
        for layer, a, b, c, names in zip("aaba", onsets, settled, alone, controls, strict=True)
    ]
    figures = figures_of(printed, found, STEPS)
    assert figures["layers"] == {"a": 3, "b": 1}
    assert figures["not_beyond"] == {"latents": 0.25, "prompt": 0.5}
    onset, last = figures["onset"], figures["settled"]
    assert onset["distribution"] == {"2": 1, "4": 1, "5": 1, "None": 1}
    assert onset["inside the printed interval"] == 0.25  # 2
    assert onset["intervals that meet it"] == 0.5  # 1..2 and 3..6
    assert (onset["determined"], onset["determined without re-splits"]) == (0.5, 0.75)
    # The printed interval has no upper end: 6 and "after the last step" lie in it.
    assert last["inside the printed interval"] == 0.5
    assert last["intervals that meet it"] == 0.75  # all but 2..4


@pytest.fixture
def world():
    """Run, scores and split of 48 prompts with one image each, and a curve that rises evenly."""
    rng = np.random.default_rng(0)
    maps = {"depth": rng.standard_normal((48, 8, 8))}
    labels = LabelSet(
        maps, {"depth": maps["depth"][TRAIN].mean(0)}, TRAIN, VALIDATION, np.arange(48)
    )
    samples = [SimpleNamespace(group=f"prompt {i}") for i in range(48)]
    run = SimpleNamespace(layers=["a", "b", "c"], samples=samples, has_prompt_embeddings=False)
    rising = np.linspace(0.1, 0.9, STEPS)[:, None] + 0.02 * rng.standard_normal((STEPS, 48))
    worse = 0.001 * rng.random(48)
    scores = {"a": rising, "b": rising - worse, "c": rising - 0.3, "latents": rising + 0.1}
    bootstrap = Bootstrap(np.arange(24), 200, 0.95, 0)
    return run, scores, Split(labels, TEST, bootstrap)


def curves_with(deviation):
    """Curves of 20 re-splits that all choose b or c, and that deviate before the last step."""
    scores = np.zeros((20, STEPS, 24))
    scores[:10, :-1], scores[10:, :-1] = deviation, -deviation
    return ResplitCurves(["c"] * 12 + ["b"] * 8, scores, np.zeros((20, 24)), 1.0)


def test_split_takes_the_tied_layer_that_most_re_splits_choose(world):
    run, scores, split = world
    found = conclude(run, "depth", scores, split, curves_with(0.0))
    assert found.layer == "b"  # c is chosen more often, but is no tie of a
    assert found.not_beyond == {"latents"}
    # Half of the last score of 0.9 is passed at the fifth of nine even steps.
    assert found.steps["onset"].step == found.alone["onset"].step == 5
    assert found.steps == found.alone


def test_re_splits_that_deviate_leave_a_step_undetermined(world):
    run, scores, split = world
    found = conclude(run, "depth", scores, split, curves_with(0.3))
    assert found.alone["onset"].determined
    assert not found.steps["onset"].determined
    assert found.steps["onset"].step == 5
    # Deviations of 0.3 in steps of 0.1 move the crossing by three steps either way.
    assert found.steps["onset"].low <= 2
    assert found.steps["onset"].high >= 8
