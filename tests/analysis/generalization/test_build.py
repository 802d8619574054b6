"""Further analyses in the summaries of whole runs."""

import numpy as np
import pytest
from run_helpers import carry_out, statistics_study

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.summarize import summarise


def test_analyses_refit_at_the_onset_and_the_last_step(finished_run):
    summary = load_summary(finished_run)
    for result in summary.properties.values():
        analyses, onset = result.analyses, result.emergence.probe.relative.onset.step
        steps = sorted({onset or 3, 3})
        assert [record.step for record in analyses.learning] == steps
        assert np.array(analyses.transfer.cosine, dtype=float).shape == (3, 3)


def test_learning_curve_ends_at_the_stored_score_of_ridge(finished_run):
    """All training images give the probe that the run stored."""
    summary = load_summary(finished_run)
    for prop, result in summary.properties.items():
        scores = finished_run.open(f"scores/{prop}").score.load()
        own = scores.sel(
            condition="probe", kind="ridge", layer=result.layer.name, metric=result.best.metric
        )
        own = own.isel(sample=own.split.values == "test", step=2)
        end = result.analyses.learning[-1].score[-1].mean
        assert end == pytest.approx(float(np.nanmean(own)), abs=1e-5)


def test_analyses_without_training_activations_have_transfer_only(tiny_model, tmp_path):
    run = carry_out(statistics_study(tiny_model, "statistics"), str(tmp_path))
    for result in summarise(run, {}).summary.properties.values():
        analyses = result.analyses
        assert np.isfinite(np.array(analyses.transfer.score, dtype=float)).any()
        assert analyses.holdout is analyses.learning is analyses.code_length is None
