"""Probing one cell, against scikit-learn and scipy; activations that are not finite."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.summarize import summarise
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell


def test_probe_cell_depth_scores_equal_scikit_learn(finished_run):
    """Ridge refitted on pixels by scikit-learn at the stored penalty, scored by scipy."""
    layer, step = finished_run.layers[0], 1
    split = finished_run.open("samples").split.values
    x = finished_run.read(f"activations/{layer}", "activation", step=step).astype(float)
    depth = finished_run.read("labels", "depth").astype(float)
    factor = depth.shape[1] // x.shape[1]
    big = x.repeat(factor, 1).repeat(factor, 2)
    probes = (
        finished_run.open(f"probes/{layer}").sel(kind="ridge", property="depth").isel(step=step)
    )
    train = split == "train"
    mean_map = depth[train].mean(0)
    tokens = mean_map.reshape(x.shape[1], factor, x.shape[2], factor).mean((1, 3))
    pooled = tokens.repeat(factor, 0).repeat(factor, 1)  # the position term at full size
    rows, wanted = big[train].reshape(-1, x.shape[-1]), (depth[train] - pooled).ravel()
    unit = x[train].reshape(-1, x.shape[-1]).var(0).mean()
    model = Ridge(alpha=float(probes.penalty) * unit * len(rows)).fit(rows, wanted)
    np.testing.assert_allclose(probes.weight.values, model.coef_, rtol=1e-4, atol=1e-7)
    scores = (
        finished_run.open("scores/depth")
        .score.sel(condition="probe", kind="ridge", layer=layer)
        .isel(step=step)
    )
    design = np.stack([np.ones(mean_map.size), mean_map.ravel(), pooled.ravel()], axis=1)
    for index in np.flatnonzero(~train):
        predicted = model.predict(big[index].reshape(-1, x.shape[-1])) + pooled.ravel()
        truth = depth[index].ravel()
        here = scores.sel(sample=index)
        for metric, expected in {
            "pearson": stats.pearsonr(predicted, truth).statistic,
            "rmse": np.sqrt(((predicted - truth) ** 2).mean()),
            "pearson_partial": stats.pearsonr(
                predicted - design @ np.linalg.lstsq(design, predicted, rcond=None)[0],
                truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0],
            ).statistic,
        }.items():
            assert float(here.sel(metric=metric)) == pytest.approx(expected, abs=2e-3), metric


def test_probe_cell_counts_non_finite_activations_and_gives_them_no_score(finished_run, tmp_path):
    study = finished_run.study
    run = prepare_run(study, str(tmp_path))
    for batch in range(len(study.batches(run.n_stored))):
        generate_batch(run.url, batch)
        label_batch(run.url, batch)
    layer = load_summary(finished_run).properties["depth"].best.layer
    heldout = int(run.open("scores/depth").sample.values[0])
    trained = int(np.flatnonzero(run.open("samples").split.values == "train")[0])
    values = run.read(f"activations/{layer}", "activation")
    bad = run.read(f"activations/{layer}", "nonfinite")
    for sample in (heldout, trained):
        values[sample, 0, 1, 1, 2] = np.inf
        bad[sample, 0] = 1
    run.write(f"activations/{layer}", {"activation": values, "nonfinite": bad})
    permuted_denoiser = f"activations_permuted/{layer}"
    values = run.read(permuted_denoiser, "activation")
    values[..., 0] = np.nan  # no cell of this layer can be probed on the permuted denoiser
    run.write(permuted_denoiser, {"activation": values, "nonfinite": np.full_like(bad, 5)})
    for step in (1, 2, 3):
        for name in run.probe_inputs:
            probe_cell(run.url, step, name)
    score = run.open("scores/depth").score.sel(condition="probe", kind="ridge", metric="spearman")
    assert np.isnan(score.sel(step=1, layer=layer, sample=heldout))
    rest = score.sel(step=1, layer=layer).drop_sel(sample=heldout)
    assert np.isfinite(rest).all()
    assert np.isfinite(score.sel(step=2, layer=layer)).all()
    weights = run.open(f"probes/{layer}").weight.sel(kind="ridge", step=1)
    assert np.isfinite(weights).all()
    summary = summarise(run, {}).summary
    assert summary.nonfinite == 2
    assert summary.nonfinite_permuted == 5 * bad.size
    (cell,) = [c for c in summary.nonfinite_cells if c.network == "trained"]
    assert (cell.step, cell.layer, cell.samples) == (1, layer, 2)
    n_values = len(bad) * np.prod(run.read(f"activations/{layer}", "activation").shape[2:])
    assert cell.share == pytest.approx(2 / n_values)
    permuted = [c for c in summary.nonfinite_cells if c.network == "permuted"]
    assert sorted(c.step for c in permuted) == [1, 2, 3]
    # An undefined control is shown as undefined, not as absent.
    of_layer = [found for found in summary.properties.values() if found.best.layer == layer]
    assert summary.properties["depth"] in of_layer
    for found in of_layer:
        assert found.controls.permuted_weights.same_cell.mean is None
        assert found.controls.permuted_weights.undefined == summary.samples["test"]
