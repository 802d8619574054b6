"""Readings of stored probes in the generation of edited images, computed here by hand."""

import numpy as np
import pytest
import torch
import xarray as xr
from intervention_helpers import carry_out_intervention, direction_in

from ldmprobe_core.analysis.report.intervention_text import readings_sentence
from ldmprobe_core.interventions.measures.readings import ProbeReader
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.layers import short_layer
from ldmprobe_core.study.properties import property_of


def dice_by_hand(predicted, cut, labels):
    """Dice of predictions (n, y, x), each enlarged to the labels' size."""
    factor = labels.shape[1] // predicted.shape[1]
    masks = (predicted > cut).repeat(factor, 1).repeat(factor, 2)
    return np.array(
        [2 * (m & t).sum() / (m.sum() + t.sum()) for m, t in zip(masks, labels, strict=True)]
    )


def test_probe_reader_scores_every_layer_and_kind_on_average_over_steps():
    rng = np.random.default_rng(0)
    cells = [(step, layer) for step in (2, 3) for layer in ("a", "b")]
    probes = {
        cell: [LinearProbe(rng.normal(size=5), 0.1, 0.0, cut=cut) for cut in (0.2, -0.3)]
        for cell in cells
    }
    labels = rng.random((2, 8, 8)) > 0.5
    reader = ProbeReader(probes)
    change = reader.reading(lambda step, layer, tokens: tokens + step, [(2, "a")])
    tokens = {
        cell: torch.from_numpy(rng.normal(size=(2, 4, 4, 5))).half().float() for cell in cells
    }
    tokens[3, "b"][1, 0, 0, 0] = torch.inf
    for cell in cells:
        after = change(*cell, tokens[cell])
        assert torch.equal(after, tokens[cell] + 2 if cell == (2, "a") else tokens[cell])
    scores = reader.scores(property_of("foreground"), "dice", labels, np.full((8, 8), 0.5))
    assert scores.shape == (2, 2, 2)
    assert np.isnan(scores[1, :, 1]).all()
    for i, layer in enumerate("ab"):
        for k in (0, 1):
            rows = []
            for step in (2, 3):
                values = tokens[step, layer].double().numpy() + (
                    2 if (step, layer) == (2, "a") else 0
                )
                values = values.astype(np.float16).astype(float)
                probe = probes[step, layer][k]
                rows.append(dice_by_hand(values @ probe.weight + 0.1, probe.cut, labels))
            defined = np.isfinite(scores[i, k])
            np.testing.assert_allclose(scores[i, k][defined], np.mean(rows, axis=0)[defined])


@pytest.mark.parametrize("method", ["leace", "mean_projection"])
def test_edit_batch_scores_the_runs_probes_after_an_erasure(run, method):
    """In the first step, activations before the edit are the stored ones.

    The erased layer is the last one, so probes of the layer before it read the same as in the run.
    """
    first, erased = run.layers
    spec = Intervention(samples=3, method=method, layers=(erased,), steps=1)
    summary = carry_out_intervention(run, spec)
    data = xr.open_zarr(run.url, group=f"interventions/{spec.name}", chunks=None)
    samples = data.sample.values
    labels = run.read("labels", "foreground", sample=samples) > run.study.labels.threshold
    stored = xr.open_zarr(run.url, group="scores/foreground", chunks=None).score
    unedited = stored.sel(condition="probe", metric="dice", step=1, sample=samples)
    readings = {(r.layer, r.kind): r for r in summary.effects["edited"].readings}
    assert set(readings) == {
        (layer, kind) for layer in run.layers for kind in run.study.linear_kinds
    }
    direction = direction_in(run, spec, 1, erased)
    tokens = run.read(f"activations/{erased}", "activation", step=0, sample=samples)
    after = direction.exact(
        torch.from_numpy(tokens).float(), direction.mean.expand(3, *tokens.shape[1:3]), 1.0
    )
    for kind in run.study.linear_kinds:
        assert readings[first, kind].less_unedited.mean == pytest.approx(0, abs=0.02)
        probe = xr.open_zarr(run.url, group=f"probes/{erased}", chunks=None).sel(
            kind=kind, property="foreground", step=1
        )
        predicted = after.numpy() @ probe.weight.values + float(probe.bias) + probe.position.values
        expected = dice_by_hand(predicted, float(probe.cut), labels)
        scores = data.probe_score.sel(condition="edited", layer=erased, kind=kind).values.ravel()
        np.testing.assert_allclose(scores, expected, atol=0.03)
        reading = readings[erased, kind]
        assert reading.score.mean == pytest.approx(scores.mean(), abs=1e-6)
        gap = scores - unedited.sel(layer=erased, kind=kind).values
        assert reading.less_unedited.mean == pytest.approx(gap.mean(), abs=1e-6)
    assert "later layers" not in readings_sentence(summary)


def test_readings_sentence_names_the_probes_that_read_most(run):
    erased, later = run.layers
    spec = Intervention(samples=2, method="leace", layers=(erased,), windows=3, controls=())
    summary = carry_out_intervention(run, spec)
    site = min(summary.sites, key=lambda site: site.used.mean)
    sentence = readings_sentence(summary)
    assert f"steps {site.first} to {site.last}, in the erased layer the " in sentence
    for layer in (erased, later):
        scores = {r.kind: r.score.mean for r in site.effects["edited"].readings if r.layer == layer}
        best = max(scores, key=scores.get)
        assert (
            f"the {best} probe of {short_layer(layer)} reads most ({scores[best]:.2f}" in sentence
        )
    other = Intervention(samples=1, steps=1, controls=())
    assert readings_sentence(carry_out_intervention(run, other)) is None


def test_edit_batch_erases_alike_whether_or_not_other_layers_are_read(run):
    """Reading does not change activations: at strength 0 the images are those of the run."""
    spec = Intervention(samples=4, method="leace", strength=0.0, steps=3, controls=())
    create_intervention(run, spec)
    edit_batch(run.url, spec.name, 0, 0, 0, 0)
    images = run.read(f"interventions/{spec.name}", "image")[0, 0, 0, 0]
    samples = run.read(f"interventions/{spec.name}", "sample")
    unedited = run.read("images", "image", sample=samples)
    assert np.abs(images.astype(int) - unedited).max() <= 1
