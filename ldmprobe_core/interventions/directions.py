"""Directions along which an intervention edits the activations of each layer and step."""

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
from ldmprobe_core.study.batching import summed_columns
from ldmprobe_core.study.conditions import LabelColumn


def directions_of(
    run: Run, spec: Intervention, plan: InterventionPlan, labels: LabelSet, shuffled: bool = False
) -> dict[tuple[int, str], EditDirection]:
    """Compute the edit direction of each edited cell, a vector over the channels of its tokens.

    Args:
        run: run whose probes give the directions.
        spec: settings of the intervention.
        plan: the checked intervention on the same run.
        labels: label maps and splits of the run.
        shuffled: whether to use probes of shuffled labels, as a control.  The run does not store
            these probes, so they are fitted again.

    Returns:
        edit directions by (step, layer); steps count from 1.

    Raises:
        UserError: a cell cannot be edited, because the weights of its probe are zero.
    """
    directions = {}
    study = run.study
    permuted = (LabelColumn("shuffled", spec.prop),)
    selection = {"property": spec.prop, "kind": plan.kind}
    for layer in plan.layers:
        probes = run.open(f"probes/{layer}", require_complete=True).sel(selection).load()
        for step in range(1, plan.steps + 1):
            tokens = run.read(f"activations/{layer}", "activation", step=step - 1)
            statistics = unstored_statistics(run, "trained", step, layer)
            if shuffled:
                columns = summed_columns(study, "trained") if statistics else permuted
                fitted = probe_activations(tokens, labels, study, columns, statistics)
                probe: Any = fitted["shuffled"].probes[plan.kind, spec.prop]
            else:
                probe = LinearProbe.from_dataset(probes.sel(step=step))
            covariance = None
            if spec.method == "exact" and spec.metric == "covariance":
                covariance = (statistics or activation_statistics(tokens, labels)).covariance
            try:
                directions[step, layer] = EditDirection.of_probe(probe, covariance)
            except ValueError as error:
                raise UserError(
                    f"layers: {layer} cannot be edited at step {step} ({error}). "
                    "Fix: leave this layer out of layers, or set steps lower so that this step is "
                    "not edited."
                ) from error
    return directions


def activation_statistics(tokens: np.ndarray, labels: LabelSet) -> SufficientStatistics:
    """Compute the statistics from which the covariance of the training activations follows.

    They contain no sums of labels.  Samples with non-finite activations are not used.

    Args:
        tokens: activations (sample, y, x, channel) of all stored samples.
        labels: label set of the run, which gives the indices of the training samples.
    """
    training = tokens[labels.train]
    finite = np.isfinite(training).reshape(len(training), -1).all(1)
    rows = training[finite].reshape(-1, tokens.shape[-1])
    return SufficientStatistics.from_tokens(rows, np.empty((len(rows), 0)))
