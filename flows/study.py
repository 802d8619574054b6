"""Study flow: generate, label, accumulate statistics if the study keeps any, probe, summarise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import flow

from flows.checks.worker_memory import worker_memory_limit
from flows.run_lock import hold_study
from flows.workers import gpu_resources, submit_units, workers_of
from ldmprobe_core.storage.lease import Lease
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Execution
from tasks.artifacts import publish
from tasks.progress import follow
from tasks.references import RunRef, units_of
from tasks.study import accumulate, generate, label, prepare, probe, redo, summarise

T = TypeVar("T")

_REDOS = 5
"""Most repairs of corrupt data before a flow fails, since a failing disk would corrupt more."""


@flow(name="study", flow_run_name="study {study.name}")
def study_flow(study: Study, store: str = "runs") -> dict[str, Any]:
    """Carry a study out in ``store`` and return its summary.

    Units of work are distributed over the study's workers.  Units that are complete in the store
    are skipped, so the same call resumes an interrupted run; units with corrupt data are repeated.

    Args:
        study: study to carry out; every key has a default.
        store: folder or ``s3://bucket/prefix`` that holds runs.
    """
    with hold_study(study, store) as (plan, lease):
        run = prepare(plan.study, store)
        with workers_of(study.execution, worker_memory_limit(plan)):
            summary = with_repair(run, lambda: _run_to_summary(run, study.execution, lease))
    publish(summary, run.url)
    return summary


def with_repair(run: RunRef, work: Callable[[], T]) -> T:
    """Call ``work``, and again after each repair if it reads corrupt data.

    Raises:
        CorruptChunkError: data is corrupt again after `_REDOS` repairs, or cannot be repaired.
    """
    for _ in range(_REDOS):
        try:
            return work()
        except CorruptChunkError as damage:
            redo(run, damage.array)
    return work()


def _run_to_summary(run: RunRef, execution: Execution, lease: Lease) -> dict[str, Any]:
    seconds = generate_and_label(run, execution)
    lease.require_held()
    seconds |= _accumulate(run, execution)
    lease.require_held()
    seconds["probe"] = follow("probe", submit_units(probe, units_of(run, "probe")))
    lease.require_held()
    return summarise(run, seconds)


def generate_and_label(run: RunRef, execution: Execution) -> dict[str, float]:
    """Generate every batch, and label each once it is generated; returns seconds by stage."""
    with gpu_resources(execution):
        generated = submit_units(generate, units_of(run, "generate"))
        labeled = submit_units(label, units_of(run, "label"), after=list(generated.values()))
    return {"generate": follow("generate", generated), "label": follow("label", labeled)}


def _accumulate(run: RunRef, execution: Execution) -> dict[str, float]:
    """Accumulate statistics if the study keeps any; returns seconds by stage.

    Accumulators are filled side by side, the units of one in sequence.
    """
    units = units_of(run, "accumulate")
    if not units:
        return {}
    with gpu_resources(execution):
        futures = submit_units(accumulate, units)
    return {"tally": follow("tally", futures)}
