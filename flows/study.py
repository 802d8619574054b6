"""The study flow: generate, label, probe, summarise."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ldmprobe_core.study import Execution, Study
from tasks.artifacts import publish
from tasks.progress import follow
from tasks.references import RunRef, batches_of, cells_of
from tasks.study import generate, label, prepare, probe, summarise


def runner_of(execution: Execution) -> TaskRunner[Any]:
    """The task runner that a study asks for."""
    if execution.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=execution.workers)
    from prefect_dask import DaskTaskRunner

    if execution.address:
        return DaskTaskRunner(address=execution.address)
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": execution.workers,
            "threads_per_worker": 1,
            "processes": True,
            "dashboard_address": None,
            "host": "127.0.0.1",
        }
    )


@flow(
    name="study",
    flow_run_name="study {study.name}",
    task_runner=runner_of(Execution()),
)
def study_flow(study: Study, store: str = "runs") -> dict[str, Any]:
    """Carry a study out in ``store`` and return its summary.

    Units of work fan out over the flow's task runner.  What is already complete in the store is
    passed over, so the same call resumes an interrupted run.
    """
    run = prepare(study, store)
    seconds = generate_and_label(run)
    probed = {f"step {c.step:02d} of {c.layer}": probe.submit(c) for c in cells_of(run)}
    seconds["probe"] = follow("probe", probed)
    summary = summarise(run, seconds)
    publish(summary, run.url)
    return summary


def generate_and_label(run: RunRef) -> dict[str, float]:
    """Fan batches out: each is generated, then labeled.  Returns the seconds of both stages."""
    batches = batches_of(run)
    made = {f"batch {batch.number:04d}": generate.submit(batch) for batch in batches}
    labeled = {
        name: label.submit(batch=batch, wait_for=[before], return_state=False)
        for batch, (name, before) in zip(batches, made.items(), strict=True)
    }
    return {"generate": follow("generate", made), "label": follow("label", labeled)}
