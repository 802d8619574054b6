"""Checks of an intervention against a run."""

import numpy as np
import pytest
from run_helpers import small_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.plan import (
    Site,
    plan_intervention,
    require_varying_predictions,
    windows_of,
)
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.properties import PROPERTIES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 99}, r"samples: more than the run's \d+ test samples \(99\)"),
        ({"steps": 9}, r"steps: more than the run's 3 sampler steps \(1 to 9\)"),
        ({"start": 4}, r"start: more than the run's 3 sampler steps \(4\)"),
        ({"start": 3, "steps": 2}, r"steps: more than the run's 3 sampler steps \(3 to 4\)"),
        ({"windows": 4}, r"windows: more than the run's 3 sampler steps \(4\)"),
        ({"layers": ("nothing.*",)}, r"no layer of the run matches \(nothing\.\*\)"),
        ({"layers": ()}, r"no layer of the run matches \(\)"),
        ({"layers": ("*attn1", "none.*")}, r"no layer of the run matches \(none\.\*\)"),
        ({"prop": "shape"}, r"no property of this name that can be edited \('shape'\)\. Fix: set"),
        ({"kind": "adam"}, r"no linear probes of foreground of this kind \('adam'\)"),
        ({"kind": "mlp"}, r"no linear probes of foreground of this kind \('mlp'\)"),
        ({"kind": "other"}, r"no linear probes of foreground of this kind \('other'\)"),
        (
            {"prop": "depth", "kind": "logistic"},
            r"no linear probes of depth of this kind \('logistic'\)",
        ),
        (
            {"kind": "ridge", "confidence": 0.9},
            r"confidence: .* ridge probes of foreground do not \(0\.9\)",
        ),
        ({"method": "adam", "kind": "ridge"}, "method: adam needs mask logits"),
        ({"chosen": (999,)}, r"chosen: sample 999 is not a test sample of this run"),
        ({"samples": 2, "targets": (Target(file="/none.png"),)}, "no such file"),
    ],
)
def test_plan_intervention_refuses_settings_that_the_run_cannot_meet(run, settings, message):
    with pytest.raises(UserError, match=message):
        create_intervention(run, Intervention(**settings))


@pytest.mark.parametrize(
    "glob", ["down_blocks.0.attentions.0", "down_blocks.0.attentions.0.attn1", "down*", "down*.0"]
)
def test_plan_intervention_takes_a_layer_by_any_form_of_its_name(run, glob):
    plan = plan_intervention(run, Intervention(samples=2, layers=(glob,)))
    named = [name for name in run.layers if name.startswith("down_blocks.0.attentions.0.")]
    assert [site.layers for site in plan.sites] == [tuple(named)]


@pytest.mark.parametrize(
    "settings", [{"metric": "l2"}, {}, {"metric": "l2", "doses": (), "strength": 0.5}]
)
def test_create_intervention_refuses_constant_predictions_before_any_work(
    run, monkeypatch, settings
):
    """Activations that are the same at every token, and weights that are not zero."""
    read, constant = type(run).read, f"activations/{run.layers[1]}"

    def patched(self, group, name, **selection):
        values = read(self, group, name, **selection)
        return np.full_like(values, 0.25) if group == constant else values

    monkeypatch.setattr(type(run), "read", patched)
    message = (
        rf"layers: {run.layers[1]} cannot be edited at step 2, because its ridge probe of depth "
        r"predicts the same for every token \(deviation 0\)\. Fix: leave this layer out"
    )
    spec = Intervention(prop="depth", samples=1, start=2, steps=1, **settings)
    with pytest.raises(UserError, match=message):
        create_intervention(run, spec)
    assert not run.location.has(f"edits/{spec.name}/intervention.json")
    plan = plan_intervention(run, spec)
    require_varying_predictions(run, Intervention(prop="depth", method="leace"), plan)


def test_plan_intervention_refuses_a_property_that_defines_no_edits(run, monkeypatch):
    depth = PROPERTIES["depth"].model_copy(update={"intervention": None})
    monkeypatch.setitem(PROPERTIES, "depth", depth)
    message = (
        r"prop: .* has no property of this name that can be edited \('depth'\)\. "
        r"Fix: set it to one of foreground, shading\.$"
    )
    with pytest.raises(UserError, match=message):
        plan_intervention(run, Intervention(prop="depth", samples=1))


def test_create_intervention_refuses_another_model(run, monkeypatch):
    monkeypatch.setattr("ldmprobe_core.models.sources.folder.fingerprint", lambda folder: "another")
    with pytest.raises(UserError, match=r"the model had fingerprint .* and .* has another now"):
        create_intervention(run, Intervention(samples=2))


def test_plan_intervention_names_missing_probes(tiny_model, tmp_path):
    study = small_study("half", tiny_model, 8)
    run = prepare_run(study, str(tmp_path))
    with pytest.raises(
        UserError, match=r"probes: .* has no probes of layer .* at step 1\. Fix: finish the run"
    ):
        plan_intervention(run, Intervention(samples=1))


@pytest.mark.parametrize(
    ("kinds", "settings", "expected"),
    [
        (["ridge", "logistic"], {"method": "adam"}, "logistic"),
        (["plain_ridge", "plain_logistic"], {"method": "adam"}, "plain_logistic"),
        (["plain_ridge", "plain_logistic"], {}, "plain_logistic"),
        (["plain_ridge", "adam"], {"method": "adam"}, "adam"),
        (["plain_ridge"], {}, "plain_ridge"),
        (["plain_ridge", "adam"], {"prop": "depth"}, "plain_ridge"),
    ],
)
def test_plan_intervention_prefers_probes_that_predict_logits(
    run, monkeypatch, kinds, settings, expected
):
    monkeypatch.setattr(type(run.study), "linear_kinds", property(lambda study: tuple(kinds)))
    assert plan_intervention(run, Intervention(samples=1, **settings)).kind == expected


def test_plan_intervention_names_the_kind_to_add_if_no_probe_can_be_used(run, monkeypatch):
    monkeypatch.setattr(type(run.study), "linear_kinds", property(lambda study: ("logistic",)))
    with pytest.raises(UserError, match=r"no linear probes of depth \(logistic\)\. Fix: add ridge"):
        plan_intervention(run, Intervention(prop="depth", samples=1))


def test_plan_intervention_refuses_an_orthogonal_null_of_latents_that_probes_read_wholly(
    run, monkeypatch
):
    kinds = ("ridge", "plain_ridge", "logistic", "adam")
    monkeypatch.setattr(type(run.study), "linear_kinds", property(lambda study: kinds))
    message = r"controls: 4 kinds of probes read all 4 channels of the latents, .* \(orthogonal\)"
    with pytest.raises(UserError, match=message):
        plan_intervention(run, Intervention(samples=1, windows=1))
    erased = {"windows": 1, "samples": 1, "method": "leace", "prop": "depth"}
    message = r"controls: 3 kinds of probes and the erased one read all 4 channels of the latents"
    with pytest.raises(UserError, match=message):
        plan_intervention(run, Intervention(**erased))
    for settings in (
        {"controls": ()}, {"layers": ("*",)}, {"prop": "depth"},
        {**erased, "controls": ("coherent",)}, {**erased, "layers": ("*",)},
    ):  # fmt: skip
        spec = Intervention(**{"samples": 1, "windows": 1, **settings})
        assert plan_intervention(run, spec).sites
    monkeypatch.setattr(type(run.study), "linear_kinds", property(lambda study: kinds[:2]))
    assert plan_intervention(run, Intervention(**erased)).sites


def test_windows_of_cover_every_step_once():
    for steps, windows in ((15, 5), (15, 4), (7, 7), (3, 1)):
        found = windows_of(steps, windows)
        assert [s for a, b in found for s in range(a, b + 1)] == list(range(1, steps + 1))
        lengths = [b - a + 1 for a, b in found]
        assert len(found) == windows
        assert max(lengths) - min(lengths) <= 1


def test_plan_intervention_makes_a_site_for_every_layer_and_window(run):
    plan = plan_intervention(run, Intervention(samples=1, windows=2))
    rows = ["latents", *run.layers]
    assert [site.layers for site in plan.sites] == [(row,) for row in rows for _ in range(2)]
    assert [(site.first, site.last) for site in plan.sites] == windows_of(3, 2) * len(rows)
    together = plan_intervention(run, Intervention(samples=1)).sites
    assert together == [Site(tuple(run.layers), 1, 2)]
    assert together[0].cells == [(s, name) for s in (1, 2) for name in run.layers]


def test_plan_intervention_prefers_donors_of_the_same_prompt(run):
    plan = plan_intervention(run, Intervention(samples=4, method="donor"))
    prompts = [sample.prompt for sample in run.samples]
    for sample, donor in zip(plan.samples, plan.donors, strict=True):
        assert donor != sample
        if prompts.count(prompts[sample]) > 1:
            assert prompts[donor] == prompts[sample]


def test_plan_intervention_edits_points_inside_layers_only_by_a_glob_that_names_them(
    run, monkeypatch
):
    layers = list(run.layers)
    monkeypatch.setattr(type(run), "layers", [*layers, f"{layers[0]}@head0"])
    (site,) = plan_intervention(run, Intervention(samples=2)).sites
    assert list(site.layers) == layers
