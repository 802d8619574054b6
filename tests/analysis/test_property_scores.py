"""Choice of cells by validation scores, from scores that are made up."""

import numpy as np
import pytest

from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.properties import property_of

IS_TEST = np.arange(60) >= 20


def scores_of(scores, inputs=None, **more):
    """Scores (kind, step, layer, held-out sample) in every metric, without controls."""
    metrics = len(property_of("depth").metrics)
    inputs = inputs or {}
    return PropertyScores(
        prop=property_of("depth"),
        kinds=["ridge", "plain_ridge"][: len(scores)],
        layers=["a", "b"],
        conditions=["probe"],
        controls=[],
        scores=scores[None, :, None].repeat(metrics, 2),
        inputs={name: one[:, None].repeat(metrics, 1) for name, one in inputs.items()},
        draws={},
        is_test=IS_TEST,
        validation_groups=np.arange(20),
        bootstrap=Bootstrap(np.arange(40), 50, 0.95, 0),
        **more,
    )


@pytest.fixture
def full():
    """Two kinds at three steps of two layers; the last step of layer b is best."""
    scores = np.random.default_rng(0).uniform(0.4, 0.5, (2, 3, 2, 60))
    scores[0, 2, 1] += 0.2
    return scores


def test_cell_that_is_defined_in_one_easy_image_is_not_the_best(full):
    full[0, 0, 0], full[0, 2, 0] = np.nan, np.nan
    full[0, 0, 0, 3] = full[0, 2, 0, 3] = 0.95
    inputs = {"latents": full[:, :, 1].copy()}
    inputs["latents"][1, 1, 1:20] = np.nan
    inputs["latents"][1, 1, 0] = 0.95
    found = scores_of(full, inputs)
    assert found.best() == (0, 2, 1)
    assert found.best_at(2) == (0, 2, 1)
    assert found.best_of_input("latents") == (0, 2)
    assert found.tied_layers == ["b"]


def test_cell_that_is_defined_in_half_of_the_images_may_be_the_best(full):
    full[0, 2, 1, :10] = np.nan
    assert scores_of(full).best() == (0, 2, 1)
    full[0, 2, 1, 10] = np.nan
    assert scores_of(full).best() != (0, 2, 1)
