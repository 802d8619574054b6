"""Interventions on runs that store sums in place of training activations (`capture.keep`)."""

import numpy as np
import pytest
from intervention_helpers import carry_out_intervention
from run_helpers import carry_out, statistics_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.run import Run


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> tuple[Run, Run]:
    """One study twice: with sums over the training samples, and with all activations."""
    changes = {
        "controls": {"permuted_weights": False, "clean_pixels": False, "prompt": False},
        "trajectory": {"samples": 2, "training": 0},
    }
    return tuple(
        carry_out(
            statistics_study(tiny_model, keep, 16, **changes), str(tmp_path_factory.mktemp(keep))
        )
        for keep in ("statistics", "activations")
    )


@pytest.mark.parametrize("settings", [{"prop": "depth"}, {"method": "leace"}], ids=str)
def test_intervention_on_a_run_of_sums_equals_that_on_a_run_of_activations(runs, settings):
    """Probes and moments agree up to rounding, so the images agree up to a level or two.

    Null edits have other random directions and shuffled labels: a run of sums lists its held-out
    samples first, so a sample has another index.
    """
    spec = Intervention(samples=2, steps=1, **settings)
    summaries = [carry_out_intervention(run, spec) for run in runs]
    one, two = ([run.samples[i] for i in plan_intervention(run, spec).samples] for run in runs)
    assert [(s.prompt, s.seed) for s in one] == [(s.prompt, s.seed) for s in two]
    assert [s.index for s in one] != [s.index for s in two]
    unedited = runs[0].read("images", "image", sample=[s.index for s in one])
    arrays = [runs[k].read(f"interventions/{spec.name}", "image").astype(int) for k in (0, 1)]
    for name, mine, other in zip(spec.conditions, *arrays, strict=True):
        assert (mine != unedited).any()
        assert name not in ("edited", "own_label") or np.abs(mine - other).max() <= 2
    effects, others = (summary.effects for summary in summaries)
    assert effects.keys() == others.keys() == set(spec.conditions)
    readings = effects["edited"].readings
    assert bool(readings) == (spec.method == "leace")
    for mine, other in zip(readings, others["edited"].readings, strict=True):
        # Predictions are constant after an erasure, so rounding moves tokens across the cut.
        assert mine.score.mean == pytest.approx(other.score.mean, abs=0.1)


def test_donors_on_a_run_of_sums_are_held_out_samples(runs):
    """Training samples have no stored activations, so the next held-out sample is the donor."""
    run, _ = runs
    spec = Intervention(samples=2, steps=1, method="donor")
    carry_out_intervention(run, spec)
    plan = plan_intervention(run, spec)
    assert [run.samples[i].split == "train" for i in plan.donors] == [False, False]
    images = run.read(f"interventions/{spec.name}", "image")[0, 0, 0, 0]
    assert (images != run.read("images", "image", sample=plan.samples)).any()
    target_map = run.read(f"interventions/{spec.name}", "target_map")[0]
    labels = run.read("labels", "foreground")[plan.donors] > run.study.labels.threshold
    np.testing.assert_array_equal(target_map, labels)


def test_plan_intervention_refuses_what_a_run_of_sums_does_not_store(runs):
    run, _ = runs
    rows = {
        site.layers for site in plan_intervention(run, Intervention(samples=1, windows=1)).sites
    }
    assert rows == {(layer,) for layer in run.layers}
    cases = [
        ({"layers": ("latents",)}, r"layers: .* capture\.keep to statistics \(latents\)"),
        ({"chosen": (run.n_stored,)}, r"chosen: sample \d+ is not a test sample of this run"),
        ({"samples": 9}, r"samples: more than the run's \d test samples \(9\)"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            plan_intervention(run, Intervention(**settings))


def test_plan_intervention_refuses_permuted_labels_without_their_sums(tiny_model, tmp_path):
    study = statistics_study(tiny_model, "statistics", 16, controls={"shuffled_labels": False})
    run = prepare_run(study, str(tmp_path))
    with pytest.raises(UserError, match=r"controls: .* no statistics of shuffled labels"):
        plan_intervention(run, Intervention(samples=1))
