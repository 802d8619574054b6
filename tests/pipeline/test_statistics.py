"""Sums instead of activations: the same probes, and what a run of them stores."""

from itertools import chain

import numpy as np
import pytest
from run_helpers import HELD_OUT, carry_out, statistics_study
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.pipeline.activation_sinks import Activations
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.statistics import (
    Accumulator,
    load_statistics,
    mean_maps,
    packed,
    run_accumulation_units,
    unpacked,
)
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.verify import find_corrupt_chunks
from ldmprobe_core.study.properties import property_of


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory):
    return carry_out(statistics_study(tiny_model, "both"), str(tmp_path_factory.mktemp("both")))


def test_ridge_from_statistics_equals_the_stored_probes(both):
    penalties = both.study.probes.penalties
    summed_inputs = both.location.folders("statistics/trained")
    # Training samples without step images have no clean pixels, so that these are not summed.
    assert set(both.probe_inputs) - set(summed_inputs) == {"clean_pixels"}
    for layer in summed_inputs:
        stored = both.open(f"probes/{layer}").sel(kind="ridge")
        for step in (1, 2, 3):
            statistics = load_statistics(both, "trained", step, layer)
            grid = both.open(f"activations/{layer}").sizes
            means = [block_means(m[None], (grid["y"], grid["x"])) for m in mean_maps(both).values()]
            # The grids are small, so each token is a position of its own.
            terms = np.stack([mean.ravel() for mean in means], axis=1)
            path = RidgePath.from_statistics(statistics.less_positions(terms))
            for column, prop in enumerate(both.study.labels.maps):
                here = stored.sel(step=step, property=prop)
                assert float(here.penalty) in penalties
                weight, bias = path.solve(float(here.penalty))
                scale = np.abs(here.weight.values).max()
                assert np.abs(weight[:, column] - here.weight.values).max() < 1e-6 * scale
                assert bias[column] == pytest.approx(float(here.bias), rel=1e-6, abs=1e-9)
                np.testing.assert_allclose(here.position.values.ravel(), terms[:, column])


def test_load_statistics_equals_scikit_learn_on_stored_activations(both):
    layer, penalty = both.layers[0], 1e-3
    labels = label_set(both)
    x = both.read(f"activations/{layer}", "activation", step=1)[labels.train].astype(float)
    y = block_means(labels.maps["depth"][labels.train], x.shape[1:3]).ravel()
    rows = x.reshape(-1, x.shape[-1])
    model = Ridge(alpha=penalty * rows.var(0).mean() * len(rows)).fit(rows, y)
    column = list(labels.maps).index("depth")
    weight, bias = RidgePath.from_statistics(load_statistics(both, "trained", 2, layer)).solve(
        penalty
    )
    np.testing.assert_allclose(weight[:, column], model.coef_, rtol=1e-5, atol=1e-7)
    assert bias[column] == pytest.approx(model.intercept_, rel=1e-5)
    for prop, mean in mean_maps(both).items():
        np.testing.assert_allclose(mean, labels.maps[prop][labels.train].mean(0), atol=1e-6)


def test_keep_statistics_gives_the_probes_of_keep_activations(tiny_model, tmp_path):
    """The same batches in both runs: held-out samples come first in the file."""
    rows = [f"a {i} on a table,{i},{'test' if i % 2 else 'validation'}" for i in range(HELD_OUT)]
    rows += [f"a {i} on a table,{i},train" for i in range(HELD_OUT, 24)]
    file = tmp_path / "prompts.csv"
    file.write_text("\n".join(["prompt,seed,split", *rows]))
    stored, summed = (
        carry_out(
            statistics_study(tiny_model, store, None, prompts={"files": str(file)}),
            str(tmp_path / store),
        )
        for store in ("activations", "statistics")
    )
    # A run that keeps only sums decodes no step images of training samples to probe.
    assert set(stored.probe_inputs) - set(summed.probe_inputs) == {"clean_pixels"}
    for layer in summed.probe_inputs:
        for name in ("weight", "bias", "penalty", "position"):
            a, b = (run.open(f"probes/{layer}")[name].values for run in (stored, summed))
            assert np.abs(a - b).max() < 1e-6 * np.abs(a).max()
    for prop in stored.study.labels.maps:
        a, b = (run.open(f"scores/{prop}").score for run in (stored, summed))
        a, b = a.sel(layer=summed.probe_inputs).values, b.values
        # Only the stored run chooses its cuts on training samples.
        first = property_of(prop).metrics.index("auroc") if property_of(prop).is_mask else 0
        for variant in (0, 2):  # shuffled labels are dealt within batches, not over all samples
            np.testing.assert_allclose(a[variant, :, first:], b[variant, :, first:], atol=1e-6)
    labels, layer = label_set(stored), stored.layers[0]
    x = stored.read(f"activations/{layer}", "activation", step=1)
    for run, members in ((stored, labels.train), (summed, labels.validation)):
        probe = run.open(f"probes/{layer}").sel(kind="ridge", property="foreground", step=2)
        predicted = x[members].astype(float) @ probe.weight.values + float(probe.bias)
        predicted += probe.position.values
        share = labels.tokens("foreground", x.shape[1:3])[members]
        cut = best_cut(predicted.reshape(len(members), -1), share.reshape(len(members), -1))
        assert float(probe.cut) == pytest.approx(cut, abs=1e-6)


def test_keep_statistics_stores_only_held_out_samples_and_first(summed):
    samples = summed.samples
    assert len(samples) == 24
    assert summed.n_stored == HELD_OUT
    assert all(s.split != "train" for s in samples[:HELD_OUT])
    assert all(s.split == "train" for s in samples[HELD_OUT:])
    for group in ("images", "labels", f"activations/{summed.layers[0]}"):
        assert summed.open(group).sizes["sample"] == HELD_OUT
    test = [i for i, sample in enumerate(samples) if sample.split == "test"]
    for group in ("step_images", "labels_clean"):
        assert summed.open(group).sample.values.tolist() == test
    training = list(
        chain.from_iterable(
            chain.from_iterable(chain.from_iterable(run_accumulation_units(summed)))
        )
    )
    assert training == list(range(HELD_OUT, 24))
    # Only one of the two buffers of an accumulator need be written.
    counts = summed.open("statistics/labels", require_complete=False)["count"].values
    assert sum(counts[p, u % 2] for p, u in enumerate(summed.progress.counts("accumulated"))) == 16


def test_keep_statistics_run_has_a_report_and_no_damage(summed):
    report = build_report(summed, {})
    assert report.samples["train"] == 16
    assert report.properties["foreground"].controls.shuffled_labels is not None
    assert list(find_corrupt_chunks(summed)) == []


def test_accumulator_leaves_out_and_counts_non_finite_samples(both):
    """By hand: a sample that overflows at one step is left out of that cell, not of the others."""
    study = both.study
    rng = np.random.default_rng(0)
    layer = both.layers[0]
    values = rng.normal(size=(3, 2, 4, 4, 5)).astype(np.float16)
    values[1, 0, 2, 2, 3] = np.inf
    bad = (~np.isfinite(values)).sum((2, 3, 4)).astype(np.int32)
    labels = {p: rng.normal(size=(3, 8, 8)) for p in study.labels.maps}
    labels["foreground"] = labels["foreground"] > 0
    entries = len(packed(np.zeros((9, 9))))
    tally = Accumulator(
        {("trained", layer): np.zeros((2, entries))},
        {("trained", layer): np.zeros((2, 16, 9))},
        {("trained", layer): np.zeros(2, np.int64)},
        {p: np.zeros((8, 8)) for p in labels},
        0,
    )
    tally.add({"trained": Activations({layer: values}, {layer: bad})}, labels, study)
    assert tally.nonfinite["trained", layer].tolist() == [1, 0]
    for step, members in ((0, [0, 2]), (1, [0, 1, 2])):
        x = values[members, step].reshape(-1, 5).astype(float)
        y = np.stack([block_means(labels[p], (4, 4))[members].ravel() for p in labels], 1)
        rows = np.column_stack([x, np.ones(len(x)), y])
        found = unpacked(tally.grams["trained", layer][step])
        np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-12, atol=1e-12)
        sums = rows.reshape(len(members), 16, 9).sum(0)
        np.testing.assert_allclose(tally.by_position["trained", layer][step], sums, rtol=1e-12)
        assert SufficientStatistics(found, 5).n == 16 * len(members)
    assert tally.count == 3
