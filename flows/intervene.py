"""Intervene flow: edit activations, finish denoising, and score the images."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run_lock import hold_run
from flows.workers import gpu_resources, submit_units, workers_of
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.storage.run import Run
from tasks.artifacts import publish_intervention
from tasks.intervene import edit, plan_edits, summarise_edits
from tasks.progress import follow
from tasks.references import units_of


@flow(name="intervene", flow_run_name="intervene {what.prop}")
def intervene_flow(url: str, what: Intervention) -> dict[str, Any]:
    """Carry an intervention out on a finished run, and return its summary.

    Batches and targets are distributed over the run's workers; complete ones are skipped.

    Args:
        url: of the run.
        what: property, targets and settings of the intervention.
    """
    run, name = plan_edits(url, what)
    execution = Run(run.url).study.execution
    with hold_run(f"{run.url}.{name}"), workers_of(execution):
        with gpu_resources(execution):
            units = submit_units(edit, units_of(run, "edit", name))
        summary = summarise_edits(run, name, follow("edit", units))
    publish_intervention(summary, run.url)
    return summary
