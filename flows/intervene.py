"""The intervene flow, which edits activations during denoising and scores the final images."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.pause_watch import with_pauses
from flows.run_lock import hold_run
from flows.workers import gpu_resources, submit_units, workers_of
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.sections import Execution
from tasks.artifacts import publish_intervention
from tasks.display import activity
from tasks.intervene import edit, plan_edits, summarise_edits
from tasks.progress import follow
from tasks.references import units_of


@flow(name="intervene", flow_run_name="intervene {what.prop}")
def intervene_flow(
    url: str, what: Intervention, execution: Execution | None = None
) -> dict[str, Any]:
    """Carry out an intervention on a finished run, and return its summary.

    Each pair of a batch and a target is one unit of work.  The workers share the units, and units
    that are already complete are skipped.

    Args:
        url: folder or URL of the run.
        what: property, targets and settings of the intervention.
        execution: workers that carry it out; None takes those of the run's study.  The type of
            device is that of the study in any case.
    """
    with activity("planning the edits"):
        run, name = plan_edits(url, what)
    execution = execution or Run(run.url).study.execution

    def edit_all() -> float:
        with gpu_resources(execution):
            units = submit_units(edit, units_of(run, "edit", name))
        return follow("edit", units).seconds

    with hold_run(f"{run.url}.{name}"), workers_of(execution):
        seconds = with_pauses(edit_all)
        with activity("summary and report"):
            summary = summarise_edits(run, name, seconds)
    with activity("sending the results to Prefect"):
        publish_intervention(summary, run.url)
    return summary
