"""Scores on exact maps, worked out from the arrays of a run with SciPy."""

import numpy as np
import pytest
from scipy import stats


def assert_exact_scores_by_hand(run, summary, maps):
    """Predictions of depth from the stored arrays, correlated with the scenes' own depth."""
    result = summary.properties["depth"]
    best, test = result.best, [s.index for s in run.samples if s.split == "test"]
    probe = run.open(f"probes/{best.layer}").sel(kind=best.kind, property="depth", step=best.step)
    tokens = run.read(f"activations/{best.layer}", "activation", step=best.step - 1)[test]
    predicted = tokens.astype(float) @ probe.weight.values + float(probe.bias)
    predicted = predicted + probe.position.values
    size = 64 // predicted.shape[1]
    expected = [
        stats.spearmanr(p.repeat(size, 0).repeat(size, 1).ravel(), maps[i].depth.ravel()).statistic
        for p, i in zip(predicted, test, strict=True)
    ]
    assert result.exact.best.mean == pytest.approx(np.mean(expected), abs=1e-5)
    labels = run.read("labels", "depth")
    train = [s.index for s in run.samples if s.split == "train"]
    mean = labels[train].mean(0, dtype=float).ravel()
    of_position = [stats.spearmanr(mean, maps[i].depth.ravel()).statistic for i in test]
    assert result.exact.position.mean == pytest.approx(np.mean(of_position), abs=1e-5)
    assert result.exact.difference.mean == pytest.approx(
        np.mean(expected) - np.mean(of_position), abs=1e-5
    )
    of_labeler = [stats.spearmanr(labels[i].ravel(), maps[i].depth.ravel()).statistic for i in test]
    assert result.exact.labeler.mean == pytest.approx(np.mean(of_labeler), abs=1e-5)
    page = run.location.read_text("report/index.html")
    assert page.index("Results on exact maps") < page.index(">Results in sentences</h2>")
