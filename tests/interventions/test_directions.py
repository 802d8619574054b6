"""Edit directions, and the moments that they need."""

import numpy as np
import pytest
from intervention_helpers import direction_in
from sklearn.linear_model import Ridge

from ldmprobe_core.interventions import directions
from ldmprobe_core.interventions.directions import label_regression
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.study.conditions import LabelColumn


def rows_of(run, step, layer, prop, members, owners):
    """Activations (token, channel) of samples, and labels of `owners` less their training mean."""
    labels = label_set(run)
    tokens = run.read(f"activations/{layer}", "activation", step=step - 1)[members]
    maps = labels.maps[prop].astype(float)
    side = tokens.shape[1]
    share = maps.reshape(len(maps), side, maps.shape[1] // side, side, -1).mean((2, 4))
    residual = share[owners] - share[labels.train].mean(0)
    return tokens.reshape(-1, tokens.shape[-1]).astype(float), residual.ravel()


def training_rows(run, step, layer, prop):
    """Training activations (token, channel), and labels less their mean at the token's position."""
    train = label_set(run).train
    return rows_of(run, step, layer, prop, train, train)


def test_label_regression_excludes_non_finite_samples(run):
    labels = label_set(run)
    layer = run.layers[0]
    tokens = run.read(f"activations/{layer}", "activation", step=0)
    broken = tokens.copy()
    broken[labels.train[1], 0, 0, 0] = np.inf
    path, column = label_regression(run, "depth", broken, labels)
    kept = np.delete(labels.train, 1)
    rows = tokens[kept].reshape(-1, tokens.shape[-1]).astype(float)
    np.testing.assert_allclose(path.covariance, np.cov(rows.T, bias=True), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(path.mean_x, rows.mean(0), rtol=1e-9)
    assert column == 0


def test_label_regression_has_no_column_for_labels_that_are_not_measured_everywhere(run):
    labels = label_set(run)
    maps = dict(labels.maps)
    maps["depth"] = maps["depth"].copy()
    maps["depth"][labels.train[0], 0, 0] = np.nan
    partial = LabelSet(
        maps, labels.means, labels.train, labels.validation, labels.heldout
    )  # fmt: skip
    tokens = run.read(f"activations/{run.layers[0]}", "activation", step=0)
    _, column = label_regression(run, "depth", tokens, partial)
    assert column is None


@pytest.mark.parametrize("prop", ["foreground", "depth"])
def test_direction_of_leace_equals_the_published_formula(run, prop):
    """Belrose et al. (2023): x - W+ P W (x - mean), with whitening W and P onto W times the cross
    covariance, computed by an eigendecomposition; a regression on what is left finds nothing."""
    layer = run.layers[0]
    spec = Intervention(prop=prop, method="leace", layers=(layer,), steps=1, samples=2)
    direction = direction_in(run, spec, 1, layer)
    rows, label = training_rows(run, 1, layer, prop)
    centred = rows - rows.mean(0)
    cross = centred.T @ label / len(rows)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    usable = values > values.max() * 1e-12
    whiten = vectors[:, usable] / np.sqrt(values[usable]) @ vectors[:, usable].T
    colour = vectors[:, usable] * np.sqrt(values[usable]) @ vectors[:, usable].T
    along = whiten @ cross
    projector = np.outer(along, along) / (along @ along)
    expected = rows - centred @ (colour @ projector @ whiten).T
    weight, step = (v.double().numpy() for v in (direction.weight, direction.step))
    reading = rows @ weight + float(direction.bias)
    erased = rows + np.outer(float(direction.mean) - reading, step)
    scale = centred.std()
    np.testing.assert_allclose(erased, expected, atol=1e-3 * scale)
    left = (erased - erased.mean(0)).T @ label / len(rows)
    assert np.abs(left).max() < 1e-3 * np.abs(cross).max()


def test_direction_of_mean_projection_is_the_difference_of_the_class_means(run):
    """With shares of 0 and 1 and no position term, the covariance is along that difference."""
    layer = run.layers[0]
    spec = Intervention(method="mean_projection", layers=(layer,), steps=1, samples=2)
    direction = direction_in(run, spec, 1, layer)
    rows, label = training_rows(run, 1, layer, "foreground")
    cross = (rows - rows.mean(0)).T @ label
    step = direction.step.double().numpy()
    cosine = step @ cross / np.linalg.norm(step) / np.linalg.norm(cross)
    assert cosine > 1 - 1e-6
    np.testing.assert_allclose(direction.weight.double().numpy() @ step, 1.0, rtol=1e-5)


@pytest.mark.parametrize("method", ["leace", "mean_projection", "exact"])
def test_orthogonal_null_leaves_the_reading_of_every_probe_of_the_run(run, method):
    """Foreground has ridge and logistic probes, of which an erasure uses neither."""
    layer = run.layers[0]
    spec = Intervention(method=method, layers=(layer,), steps=1, samples=2)
    nulls = direction_in(run, spec, 1, layer).nulls
    rows, _ = training_rows(run, 1, layer, "foreground")
    covariance = np.cov(rows.T, bias=True)
    stored = run.open(f"probes/{layer}").weight.sel(property="foreground", step=1)
    for kind in ("ridge", "logistic"):
        weight = stored.sel(kind=kind).values.astype(float)
        deviation = np.sqrt(weight @ covariance @ weight)
        assert deviation > 0

        def moved(null, weight=weight, deviation=deviation):
            """Change of the prediction by edits of the activations' own size, in deviations."""
            size = np.sqrt(np.trace(covariance))
            return np.abs(nulls[null].double().numpy() @ weight) * size / deviation

        assert moved("orthogonal").max() < 1e-5
        assert moved("coherent").max() > 0.1


@pytest.mark.parametrize("metric", ["l2", "covariance"])
def test_permuted_directions_are_of_ridge_regressions_on_other_images_labels(run, metric):
    """Each draw against scikit-learn's ridge at the penalty with the least validation error."""
    layer = run.layers[1]
    spec = Intervention(prop="depth", metric=metric, layers=(layer,), samples=2, steps=1)
    found = direction_in(run, spec, 1, layer).nulls["permuted"].double().numpy()
    assert found.shape[0] == 16
    labels, seed = label_set(run), run.study.prompts.seed
    for draw in (0, 1, 15):
        fits = []
        owners = [
            LabelColumn("shuffled", "depth", draw).owners(members, seed)
            for members in (labels.train, labels.validation)
        ]
        assert not (owners[0] == labels.train).any()
        x, y = rows_of(run, 1, layer, "depth", labels.train, owners[0])
        validation = rows_of(run, 1, layer, "depth", labels.validation, owners[1])
        covariance = np.cov(x.T, bias=True)
        for penalty in run.study.probes.penalties:
            fit = Ridge(alpha=penalty * np.trace(covariance) / x.shape[1] * len(x)).fit(x, y)
            fits.append((np.square(fit.predict(validation[0]) - validation[1]).mean(), fit.coef_))
        expected = min(fits, key=lambda fit: fit[0])[1]
        expected = expected if metric == "l2" else covariance @ expected
        cosine = found[draw] @ expected / np.linalg.norm(expected)
        assert cosine > 1 - 1e-5
    assert np.abs(np.triu(found @ found.T, 1)).max() < 0.999
    other = direction_in(run, spec.model_copy(update={"seed": 5}), 1, layer).nulls["permuted"]
    assert np.abs(found @ other.double().numpy().T).max() < 0.999


def test_null_of_permuted_labels_has_one_permutation_of_probes_that_take_long_to_fit(run):
    layer = run.layers[0]
    for kind in ("logistic", "ridge"):
        spec = Intervention(kind=kind, layers=(layer,), samples=2, steps=1, seed=3)
        assert direction_in(run, spec, 1, layer).nulls["permuted"].shape[0] == 16
    assert directions.permutations(run, "adam") == 1


def test_erasure_of_the_denoisers_input_fits_no_probes_of_latents_that_no_null_edit_needs(
    run, monkeypatch
):
    fitted = []
    monkeypatch.setattr(directions, "single_latent_probes", lambda *cell: fitted.append(cell))
    spec = Intervention(
        prop="depth",
        method="leace",
        layers=("latents",),
        steps=1,
        samples=2,
        controls=("coherent",),
    )
    assert direction_in(run, spec, 1, "latents").nulls["coherent"].shape[0] == 16
    assert fitted == []


def test_direction_of_the_denoisers_input_reads_single_latents(run):
    spec = Intervention(prop="depth", layers=("latents",), steps=1, samples=2)
    direction = direction_in(run, spec, 1, "latents")
    channels = run.read("activations/latents", "activation", step=0).shape[-1]
    assert direction.weight.shape == (channels,)
    assert direction.nulls["orthogonal"].shape[1] == channels


def test_direction_of_null_edits_is_nearly_the_same_at_every_step(run):
    """The two steps differ in their activations and probes, but draw the same numbers."""
    spec = Intervention(prop="depth", layers=("mid_block*",), samples=2, controls=("coherent",))
    layer = next(name for name in run.layers if name.startswith("mid_block"))
    one, two = (direction_in(run, spec, step, layer).nulls["coherent"] for step in (1, 2))
    assert ((one * two).sum(1) > 0.5).all()
    other = direction_in(run, spec.model_copy(update={"seed": 5}), 1, layer).nulls["coherent"]
    assert (one * other).sum(1).abs().mean() < 0.5
