"""Scores of a probe on ground-truth maps, from arrays in place of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.analysis.controls.exact_maps import exact_record
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.loading import parse_study

TEST = np.arange(12, 24)


@pytest.fixture
def masks():
    return np.random.default_rng(0).random((24, 8, 8)) > 0.5


def record_of(masks, probe):
    """Exact maps equal to the labels; the one channel of each token has its foreground share."""
    tokens = masks.reshape(24, 4, 2, 4, 2).mean((2, 4))[..., None].astype(np.float32)

    def read(group, name, step=None, sample=None):
        return masks[sample] if group == "exact_maps" else tokens[sample]

    run = SimpleNamespace(study=parse_study({}), exact_properties=("foreground",), read=read)
    train = TEST - 12
    labels = LabelSet(
        {"foreground": masks}, {"foreground": masks[train].mean(0)}, train, train, TEST
    )
    bootstrap = Bootstrap(TEST, 50, 0.95, 0)
    return exact_record(run, labels, "foreground", (1, "layer", probe), TEST, bootstrap)


def test_masks_are_cut_where_the_probe_says(masks):
    found = record_of(masks, LinearProbe(np.ones(1), 0.0, 1.0, cut=0.4))
    # By hand: Dice of the blocks of which at least half is foreground.
    shares = masks[TEST].reshape(12, 4, 2, 4, 2).mean((2, 4))
    predicted = (shares > 0.4).repeat(2, 1).repeat(2, 2)
    overlap = (predicted & masks[TEST]).sum((1, 2))
    dice = 2 * overlap / (predicted.sum((1, 2)) + masks[TEST].sum((1, 2)))
    assert found.best.mean == pytest.approx(dice.mean())
    assert found.labeler.mean == 1.0


def test_probe_that_could_not_be_fitted_has_no_score(masks):
    found = record_of(masks, LinearProbe(np.full(1, np.nan), np.nan, np.nan))
    assert (found.best.mean, found.difference.mean) == (None, None)
    assert found.position.mean is not None
