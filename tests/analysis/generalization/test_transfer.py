"""Transfer matrix and cosines against the stored scores and slow loops."""

import numpy as np
import pytest

from ldmprobe_core.analysis.generalization.transfer import weight_cosines
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.block_scores import upsample
from ldmprobe_core.probing.metrics import score_maps


@pytest.fixture(scope="module")
def summary(finished_run):
    return load_summary(finished_run)


@pytest.fixture(scope="module")
def test_indices(finished_run):
    return np.array([s.index for s in finished_run.samples if s.split == "test"])


def test_diagonal_of_the_transfer_matrix_has_the_stored_scores(finished_run, summary):
    for prop, result in summary.properties.items():
        scores = finished_run.open(f"scores/{prop}").score.load()
        own = scores.sel(condition="probe", kind=result.layer.kind, layer=result.layer.name)
        own = own.isel(sample=own.split.values == "test")
        matrix = np.array(result.analyses.transfer.score, dtype=float)
        expected = own.sel(metric=result.best.metric).mean("sample", skipna=True)
        np.testing.assert_allclose(matrix.diagonal(), expected, atol=1e-6)
        assert (result.analyses.transfer.partial is None) == (prop == "foreground")


def test_transfer_matrix_equals_full_size_scores_in_a_loop(finished_run, summary, test_indices):
    labels = label_set(finished_run)
    for prop, result in summary.properties.items():
        layer = result.layer.name
        group = finished_run.open(f"probes/{layer}").load()
        mean, truth = labels.means[prop], labels.maps[prop][test_indices]
        matrix = np.array(result.analyses.transfer.score, dtype=float)
        for i in range(3):
            stored = group.sel(property=prop, kind=result.layer.kind).isel(step=i)
            for j in range(3):
                x = finished_run.read(f"activations/{layer}", "activation", step=j)[test_indices]
                tokens = x.astype(float) @ stored.weight.values + float(stored.bias)
                tokens = upsample(tokens + stored.position.values, mean.shape)
                scores = score_maps(prop, tokens, truth, mean, x.shape[1:3], cut=float(stored.cut))[
                    0
                ]
                assert matrix[i, j] == pytest.approx(np.nanmean(scores), abs=1e-9)


def test_cosines_of_the_transfer_record_scale_weights_by_deviations_of_the_test_samples(
    finished_run, summary, test_indices
):
    """The cosine of two steps' weights, each times its channels' standard deviations there."""
    for prop, result in summary.properties.items():
        layer = result.layer.name
        stored = finished_run.open(f"probes/{layer}").load()
        weights = stored.sel(property=prop, kind=result.layer.kind).weight.values
        scaled = []
        for step in range(3):
            x = finished_run.read(f"activations/{layer}", "activation", step=step)[test_indices]
            rows = x.reshape(-1, x.shape[-1]).astype(float)
            deviation = np.sqrt(((rows - rows.mean(0)) ** 2).mean(0))
            scaled.append(weights[step] * deviation)
        expected = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in scaled] for a in scaled]
        found = np.array(result.analyses.transfer.cosine, dtype=float)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weight_cosines_equal_a_loop_and_ignore_the_scale_of_channels():
    rng = np.random.default_rng(0)
    weights, deviations = rng.normal(size=(4, 6)), rng.uniform(0.5, 2, size=(4, 6))
    cosines = weight_cosines(weights, deviations)
    for i in range(4):
        for j in range(4):
            a, b = weights[i] * deviations[i], weights[j] * deviations[j]
            expected = a @ b / np.sqrt((a @ a) * (b @ b))
            assert cosines[i, j] == pytest.approx(expected)
    scale = rng.uniform(0.1, 10, 6)
    np.testing.assert_allclose(weight_cosines(weights / scale, deviations * scale), cosines)


def test_weight_cosines_of_a_probe_of_zeros_are_undefined():
    cosines = weight_cosines(np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones((2, 2)))
    np.testing.assert_array_equal(np.isnan(cosines), [[True, True], [True, False]])


def test_stored_probes_are_those_of_the_run(finished_run, summary):
    layer = summary.properties["depth"].layer
    probes = stored_probes(finished_run, layer.name, "ridge", "depth")
    stored = finished_run.open(f"probes/{layer.name}").sel(kind="ridge", property="depth").load()
    for i, probe in enumerate(probes):
        np.testing.assert_array_equal(probe.weight, stored.weight.values[i])
        assert probe.bias == float(stored.bias[i])
