"""A property, a kind of probe and a control that are added by registration alone."""

import json
from contextlib import suppress

import numpy as np
import pytest
from run_helpers import arrays, carry_out

from ldmprobe_core.analysis.compare import compare
from ldmprobe_core.analysis.controls.ceilings import block_ceilings
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.text import best_rows, headline
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import LabelerEntry
from ldmprobe_core.labelers.registry import register_labeler
from ldmprobe_core.probing.fitters.registry import FITTERS, register_fitter
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.metrics import METRICS, Metric, register_metric
from ldmprobe_core.study.conditions import (
    ASSIGNMENTS,
    CONDITIONS,
    Condition,
    register_condition,
)
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.probe_kinds import PROBE_KINDS, ProbeKind
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.properties import PROPERTIES, Property, register_property


class EdgeLabeler:
    """Mean absolute difference of grey levels to the left neighbour."""

    units = "grey levels"
    classes = ()

    def __call__(self, images):
        grey = images.astype(np.float32).mean(-1)
        return np.abs(np.diff(grey, axis=2, prepend=grey[:, :, :1]))


class LeastSquaresFitter:
    """Least squares without a penalty, by numpy."""

    kind = ProbeKind(name="least-squares", title="least squares", mask_output="share")

    def fit(self, data):
        rows = np.column_stack([data.x.astype(float), np.ones(len(data.x))])
        solution = np.linalg.lstsq(rows, data.y, rcond=None)[0]
        return LinearProbe(solution[:-1], float(solution[-1]), float("nan"))


class ConstantProbe:
    """Predicts one value everywhere."""

    def __init__(self, value):
        self.value = value

    def predict(self, activations):
        return np.full(activations.shape[:-1], self.value)


class ConstantFitter:
    """The mean training label: a nonlinear kind, that is a control."""

    kind = ProbeKind(name="constant", title="a constant", linear=False, mask_output="share")

    def fit(self, data):
        return ConstantProbe(float(data.y.mean()))


def reverse(members, seed):
    return members[::-1]


def total_error(predicted, truth):
    return np.abs(predicted - truth).sum((1, 2))


@pytest.fixture
def registered(monkeypatch):
    """Registers every extension, and restores the registries afterwards."""
    registries = (PROPERTIES, PROBE_KINDS, FITTERS, METRICS, CONDITIONS, ASSIGNMENTS)
    before = [dict(entries) for entries in registries]
    register_metric("total_error", Metric(total_error))
    register_property(
        Property(
            name="borders",
            title="borders",
            kind="scalar",
            metrics=("pearson", "rmse", "total_error"),
        )
    )
    entry = LabelerEntry(lambda spec, device: EdgeLabeler())
    with suppress(ValueError):  # registered for an earlier test
        register_labeler("borders", "difference", entry)
    register_fitter(LeastSquaresFitter())
    register_fitter(ConstantFitter())
    register_condition(
        Condition(
            name="reversed_labels",
            title="reversed labels",
            column="reversed",
            assignment="reversed",
        ),
        reverse,
    )
    yield
    for entries, old in zip(registries, before, strict=True):
        entries.clear()
        entries.update(old)


def test_a_whole_study_with_registered_extensions(registered, tiny_study, tmp_path):
    study = tiny_study(
        labels={"borders": "difference", "foreground": "tabletop", "shading": None},
        probes={"kinds": ["ridge", "logistic", "least-squares", "constant"]},
        controls={"reversed_labels": True, "permuted_weights": False},
    )
    assert study.labels.maps == ("foreground", "depth", "borders")
    assert parse_study(json.loads(study.to_json())).hash == study.hash
    run = carry_out(study, str(tmp_path))
    build_report(run, {})

    score = run.open("scores/borders").score.load()
    names = ["probe", "shuffled_labels", "permuted_weights", "reversed_labels"]
    assert score.condition.values.tolist() == names
    assert score.kind.values.tolist() == ["ridge", "logistic", "least-squares", "constant"]
    assert np.isnan(score.sel(kind="logistic")).all()
    assert np.isnan(score.sel(condition="permuted_weights")).all()
    assert np.isfinite(score.sel(condition="reversed_labels", kind="ridge", metric="rmse")).all()

    # By hand: the labels, the fit under reversed labels, and a metric without a block form.
    layer = run.layers[0]
    grey = run.read("images", "image").astype(float).mean(-1)
    edges = np.zeros_like(grey)
    edges[:, :, 1:] = np.abs(grey[:, :, 1:] - grey[:, :, :-1])
    np.testing.assert_allclose(run.read("labels", "borders"), edges, atol=1e-4)
    split = run.open("samples").split.values
    train = np.flatnonzero(split == "train")
    x = run.read(f"activations/{layer}", "activation", step=1).astype(float)
    n, y, width, channels = x.shape
    factor = edges.shape[1] // y
    means = edges.reshape(n, y, factor, width, factor).mean((2, 4))
    rows = np.column_stack([x[train].reshape(-1, channels), np.ones(len(train) * y * width)])
    for condition, owners in (("probe", train), ("reversed_labels", train[::-1])):
        fitted = np.linalg.lstsq(rows, means[owners].ravel(), rcond=None)[0]
        for sample in np.flatnonzero(split != "train"):
            maps = x[sample] @ fitted[:-1] + fitted[-1]
            gap = np.abs(maps.repeat(factor, 0).repeat(factor, 1) - edges[sample])
            stored = score.sel(
                condition=condition, kind="least-squares", metric="total_error", step=2,
                layer=layer, sample=sample,
            )  # fmt: skip
            assert float(stored) == pytest.approx(gap.sum(), rel=1e-3)
    weights = run.open(f"probes/{layer}").kind.values.tolist()
    assert weights == ["ridge", "logistic", "least-squares"]

    summary = load_summary(run)
    found = summary.properties["borders"]
    assert found.best.metric == "pearson"
    assert None not in found.ceilings.values()
    assert found.best.kind in ("ridge", "least-squares")
    controls = found.controls.by_name()
    assert {"reversed_labels", "constant", "shuffled_labels"} <= set(controls)
    row = next(row for row in best_rows(summary) if row["property"] == "borders")
    assert {"reversed", "constant"} <= set(row)
    assert any(line.startswith("Borders: at the last step") for line in headline(summary))
    page = run.location.read_text("report/index.html")
    assert "borders-heatmap.svg" in page
    assert "reversed labels" in page
    assert len(compare([run, run])) == 2 * len(summary.properties)


def test_studies_name_only_registered_extensions(tiny_study):
    with pytest.raises(UserError, match=r"labels: borders is not a known key.*foreground, depth"):
        tiny_study(labels={"borders": "difference"})
    with pytest.raises(UserError, match=r"controls: reversed_labels is not a known key"):
        tiny_study(controls={"reversed_labels": True})
    with pytest.raises(
        UserError, match=r"kinds has 'least-squares', .*\. Fix: choose from ridge, logistic"
    ):
        tiny_study(probes={"kinds": ["least-squares"]})
    with pytest.raises(UserError, match=r"none of them linear"):
        tiny_study(probes={"kinds": ["mlp"]})


def test_an_extension_that_is_off_leaves_a_study_as_it_is(registered, tiny_study, tmp_path):
    study = tiny_study()
    off = tiny_study(labels={"borders": None})
    assert off.hash == study.hash
    assert "borders" not in study.to_json()
    run = carry_out(study, str(tmp_path))
    assert not any("borders" in path for path in arrays(run))
    assert len(run.open("scores/depth").condition) == 3


def test_registered_metric_leads_no_mask_and_has_no_ceilings(registered, monkeypatch):
    # Cuts of masks are chosen for Dice: at such a cut, position alone may score much worse in
    # another metric than a prediction of nothing.
    with pytest.raises(ValueError, match=r"begins with 'total_error', .* of a mask\. Fix: .* dice"):
        Property(name="sunlit", kind="mask", metrics=("total_error", "iou"))
    assert Property(name="sunlit", kind="mask", metrics=("dice", "total_error")).metrics[1:]
    led = Property(name="borders", kind="scalar", metrics=("total_error", "rmse"))
    monkeypatch.setitem(PROPERTIES, "borders", led)
    maps = {"borders": np.random.default_rng(0).random((4, 8, 8))}
    labels = LabelSet(
        maps, {"borders": maps["borders"][:2].mean(0)},
        np.array([0, 1]), np.array([2]), np.array([2, 3]),
    )  # fmt: skip
    # A constant prediction at the block's median has less error than the block mean.
    assert block_ceilings(labels, "borders", [(4, 4)], np.array([3])) == {"4x4": None}


def test_names_that_are_taken_are_refused(registered):
    for name in ("depth", "borders", "class", "threshold", "Edges", "two words"):
        with pytest.raises(ValueError, match=f"property {name!r}"):
            register_property(Property(name=name, title=name, kind="scalar", metrics=("pearson",)))
    with pytest.raises(ValueError, match="fitter 'constant': the name is taken"):
        register_fitter(ConstantFitter())
    with pytest.raises(ValueError, match="metric 'dice': the name is taken"):
        register_metric("dice", Metric(total_error))
    with pytest.raises(ValueError, match="condition 'probe': the name is taken"):
        register_condition(Condition(name="probe", title="", column=""))
    with pytest.raises(ValueError, match="assignment 'odd': no such assignment"):
        register_condition(Condition(name="odd", title="", column="", assignment="odd"))
    assert LabelerSpec(name="difference").name == "difference"
