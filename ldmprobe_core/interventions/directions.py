"""Edit directions of every cell of an intervention."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.edit import EditDirection
from ldmprobe_core.interventions.plan import InterventionPlan
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.pipeline.statistics import unstored_statistics
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import label_assignments


def directions_of(
    run: Run, what: Intervention, plan: InterventionPlan, labels: LabelSet, shuffled: bool = False
) -> dict[tuple[int, str], EditDirection]:
    """The direction of every edited cell.

    Args:
        shuffled: of probes trained on labels dealt to other images (the control), fitted here.
    """
    found = {}
    study = run.study
    place = {"property": what.prop, "kind": plan.kind}
    for layer in plan.layers:
        probes = run.open(f"probes/{layer}", require_complete=True).sel(place).load()
        for step in range(1, plan.steps + 1):
            tokens = run.read(f"activations/{layer}", "activation", step=step - 1)
            sums = unstored_statistics(run, "trained", step, layer)
            if shuffled:
                assignments = label_assignments(study, "trained") if sums else ("shuffled",)
                fitted = probe_activations(tokens, labels, study, assignments, sums)
                probe: Any = fitted["shuffled"].probes[plan.kind, what.prop]
            else:
                here = probes.sel(step=step)
                weight = here.weight.values.astype(np.float64)
                probe = LinearProbe(weight, float(here.bias), float(here.penalty))
            covariance = None
            if what.method == "exact" and what.metric == "covariance":
                covariance = (sums or activation_statistics(tokens, labels)).covariance
            try:
                found[step, layer] = EditDirection.of_probe(probe, covariance)
            except ValueError as error:
                raise UserError(f"{layer} at step {step} cannot be edited: {error}") from error
    return found


def activation_statistics(tokens: np.ndarray, labels: LabelSet) -> SufficientStatistics:
    """Sums over the training samples that are finite, of tokens (sample, y, x, channel) alone."""
    trained = tokens[labels.train]
    finite = np.isfinite(trained).reshape(len(trained), -1).all(1)
    rows = trained[finite].reshape(-1, tokens.shape[-1])
    return SufficientStatistics.from_tokens(rows, np.empty((len(rows), 0)))
