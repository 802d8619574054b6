"""The study flow: generate, label, tally where asked for, probe, summarise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import flow
from prefect.futures import PrefectFuture

from flows.holding import hold_run, run_url
from flows.workers import gpu_resources, workers_of
from ldmprobe_core.storage.checksum_store import CorruptChunkError
from ldmprobe_core.storage.lease import Lease
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Execution
from tasks.artifacts import publish
from tasks.progress import follow
from tasks.references import AccumulationRef, RunRef, accumulations_of, batches_of, cells_of
from tasks.study import generate, label, prepare, probe, redo, summarise, tally

T = TypeVar("T")

_REDOS = 5
"""How often damaged data is made again before a run gives up: a disk may be dying."""


@flow(name="study", flow_run_name="study {study.name}")
def study_flow(study: Study, store: str = "runs") -> dict[str, Any]:
    """Carry a study out in ``store`` and return its summary.

    Units of work fan out over the study's workers.  What is already complete in the store is
    passed over, so the same call resumes an interrupted run; what is found damaged is made again.

    Args:
        study: what to carry out; every key has a default.
        store: folder or ``s3://bucket/prefix`` that holds runs.
    """
    with hold_run(run_url(study, store)) as lease:
        run = prepare(study, store)
        with workers_of(study.execution):
            summary = with_repair(run, lambda: _to_the_summary(run, study.execution, lease))
    publish(summary, run.url)
    return summary


def with_repair(run: RunRef, work: Callable[[], T]) -> T:
    """Do some work on a run; what is found damaged on the way is made again by doing it anew.

    Raises:
        DamageError: over and over.
    """
    for _ in range(_REDOS):
        try:
            return work()
        except CorruptChunkError as damage:
            redo(run, damage.array)
    return work()


def _to_the_summary(run: RunRef, execution: Execution, lease: Lease) -> dict[str, Any]:
    seconds = generate_and_label(run, execution)
    lease.require_held()
    seconds |= _tally(run, execution)
    lease.require_held()
    probed = {f"step {c.step:02d} of {c.layer}": probe.submit(c) for c in cells_of(run)}
    seconds["probe"] = follow("probe", probed)
    lease.require_held()
    return summarise(run, seconds)


def generate_and_label(run: RunRef, execution: Execution) -> dict[str, float]:
    """Fan batches out: each is generated, then labeled.  Returns the seconds of both stages."""
    batches = batches_of(run)
    with gpu_resources(execution):
        made = {f"batch {batch.number:04d}": generate.submit(batch) for batch in batches}
        labeled = {
            name: label.submit(batch=batch, wait_for=[before], return_state=False)
            for batch, (name, before) in zip(batches, made.items(), strict=True)
        }
    return {"generate": follow("generate", made), "label": follow("label", labeled)}


def _tally(run: RunRef, execution: Execution) -> dict[str, float]:
    """Add statistics up, where the study asks for any.  Returns the stage's seconds."""
    parts = accumulations_of(run)
    if not parts:
        return {}
    with gpu_resources(execution):
        units = _in_chains(parts)
    return {"tally": follow("tally", units)}


def _in_chains(parts: list[list[AccumulationRef]]) -> dict[str, PrefectFuture[Any]]:
    """Parts side by side; each unit of a part waits for the one before."""
    units: dict[str, PrefectFuture[Any]] = {}
    for part in parts:
        before: list[PrefectFuture[Any]] = []
        for unit in part:
            future = tally.submit(unit=unit, wait_for=before, return_state=False)
            units[f"part {unit.part}, unit {unit.number:04d}"] = future
            before = [future]
    return units
