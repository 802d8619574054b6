"""Probes of one cell: the cuts of masks."""

import numpy as np
import pytest

from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.loading import parse_study


def mean_dice(predicted, masks, cut):
    """Mean Dice over images by loops over pixels; 1 for two empty masks."""
    scores = []
    for tokens, mask in zip(predicted, masks, strict=True):
        pairs = [(p > cut, m) for p, m in zip(tokens.ravel(), mask.ravel(), strict=True)]
        total = sum(p + int(m) for p, m in pairs)
        scores.append(2 * sum(p and m for p, m in pairs) / total if total else 1.0)
    return np.mean(scores)


@pytest.mark.parametrize("assignment", ["true", "shuffled"])
def test_cut_of_a_mask_is_the_best_on_the_labels_that_its_probe_was_fitted_to(assignment):
    """Image i has the share i / 24 of foreground, so labels of other images need another cut."""
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(24, 4, 4, 3)).astype(np.float32)
    order = (activations[..., 0] + rng.normal(size=(24, 4, 4)) / 2).reshape(24, 16).argsort(1)
    masks = (order.argsort(1) >= 16 - np.arange(24)[:, None] * 16 // 24).reshape(24, 4, 4)
    activations[..., 1] += np.arange(24)[:, None, None] / 8
    train, validation, heldout = np.arange(12), np.arange(12, 18), np.arange(12, 24)
    maps = {"foreground": masks}
    labels = LabelSet(maps, {"foreground": masks[train].mean(0)}, train, validation, heldout)
    study = parse_study({"probes": {"kinds": ["ridge"]}, "controls": {"mlp": False}})
    column = LabelColumn(assignment, "foreground")
    probe = probe_activations(activations, labels, study, (column,))[assignment].probes[
        "ridge", "foreground"
    ]
    owners = column.owners(train, study.prompts.seed)
    assert (assignment == "true") == (owners == train).all()
    predicted = probe.predict(activations[train])
    candidates = np.unique(predicted)
    best = max(mean_dice(predicted, masks[owners], cut) for cut in candidates)
    chosen = mean_dice(predicted, masks[owners], probe.cut)
    assert chosen >= best - 0.005  # candidates of the cut are quantiles
