"""Prefect tasks of the intervene flow."""

from __future__ import annotations

from typing import Any

from prefect import task

from ldmprobe_core.interventions.measures.summarize import summarise_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention
from ldmprobe_core.storage.run import Run
from tasks.references import RunRef, UnitRef
from tasks.retries import RETRIES
from tasks.study import carry_out


@task(name="plan edits", task_run_name="plan {what.prop} edits")
def plan_edits(url: str, what: Intervention) -> tuple[RunRef, str]:
    """Check an intervention, and create the arrays for its results unless they exist.

    Returns:
        a reference to the run, and the name of the intervention.
    """
    run = Run(url)
    name = create_intervention(run, what)
    return RunRef(url=run.url, identity=run.location.read_text("identity").strip()), name


@task(
    name="edit",
    task_run_name="{unit.title}",
    result_serializer="json",
    **RETRIES,
)
def edit(unit: UnitRef) -> dict[str, Any]:
    """Edit the activations of one batch towards one target, and score the resulting images."""
    return carry_out(unit)


@task(name="summarise edits", task_run_name="summarise {name}")
def summarise_edits(run: RunRef, name: str, seconds: float) -> dict[str, Any]:
    """Summarise an intervention, and rebuild the run's report so that it shows the results."""
    # Imported here, because Dask workers import this module and do not need Matplotlib.
    from ldmprobe_core.analysis.report.build import rebuild_report

    store = Run(run.url)
    findings = summarise_intervention(store, name, seconds)
    rebuild_report(store)
    return findings.model_dump(mode="json")
