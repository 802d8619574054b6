"""Checks of an intervention against a run."""

import pytest
from run_helpers import small_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.pipeline.prepare import prepare_run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 99}, r"samples: more than the run's \d+ test samples \(99\)"),
        ({"steps": 9}, r"steps: more than the run's 3 sampler steps \(9\)"),
        ({"layers": ("nothing.*",)}, r"no layer of the run matches \(nothing\.\*\)"),
        ({"layers": ("*attn1", "none.*")}, r"no layer of the run matches \(none\.\*\)"),
        ({"kind": "adam"}, r"no probes of foreground of this kind \('adam'\)"),
        ({"prop": "depth", "kind": "logistic"}, r"no probes of depth of this kind \('logistic'\)"),
        (
            {"kind": "ridge", "confidence": 0.9},
            r"confidence: .* ridge probes of foreground do not \(0\.9\)",
        ),
        ({"method": "adam", "kind": "ridge"}, "method: adam needs logits"),
        ({"chosen": (999,)}, r"chosen: sample 999 is not a test sample of this run"),
        ({"samples": 2, "targets": (Target(file="/none.png"),)}, "no such file"),
    ],
)
def test_plan_intervention_refuses_settings_that_the_run_cannot_meet(run, settings, message):
    with pytest.raises(UserError, match=message):
        create_intervention(run, Intervention(**settings))


def test_create_intervention_refuses_another_model(run, monkeypatch):
    monkeypatch.setattr("ldmprobe_core.pipeline.prepare.fingerprint", lambda folder: "another")
    with pytest.raises(UserError, match=r"the model had fingerprint .* and .* has another now"):
        create_intervention(run, Intervention(samples=2))


def test_plan_intervention_names_missing_probes(tiny_model, tmp_path):
    study = small_study("half", tiny_model, 8)
    run = prepare_run(study, str(tmp_path))
    with pytest.raises(
        UserError, match=r"probes: .* has no probes of layer .* at step 1\. Fix: finish the run"
    ):
        plan_intervention(run, Intervention(samples=1))
