"""Draws of shuffled labels that few training samples can only repeat."""

from types import SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.analysis.controls.draws import different_draws
from ldmprobe_core.study.samples import Sample


@pytest.mark.parametrize(
    ("training", "draws", "kept"), [(4, 7, False), (4, 6, True), (5, 20, True)]
)
def test_draws_that_must_be_repetitions_are_no_evidence(tiny_study, training, draws, kept):
    scores = np.random.default_rng(0).uniform(size=(draws, 2, 3, 4)).astype(np.float32)
    run = SimpleNamespace(
        study=tiny_study(),
        samples=[Sample(i, f"{i}", i, None, "train") for i in range(training)],
        read=lambda group, name: {("scores/depth", "shuffled_labels_draws"): scores}[group, name],
    )
    found = different_draws(run, "depth", "shuffled_labels")
    assert found.shape == scores.shape
    assert np.array_equal(found, scores) if kept else np.isnan(found).all()
