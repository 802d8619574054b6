"""The study flow: generate and label images, train probes on the activations, and report.

A study can also ask for sums over all training samples instead of stored activations.  In that
case, the flow accumulates these statistics before it trains the probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from dask.system import CPU_COUNT
from prefect import flow

from flows.checks.worker_memory import number_with_room, planned_memory, worker_memory_limit
from flows.pause_watch import with_pauses
from flows.run_lock import hold_study
from flows.scheduling.conclusion import conclude
from flows.scheduling.settings import Schedule, scheduled_date, summary_if_finished, wait_of
from flows.workers import gpu_resources, submit_units, workers_of
from ldmprobe_core.analysis.records import PeakRecord, peak_records
from ldmprobe_core.pipeline.parallel.cells import (
    cell_helpers,
    helper_bytes,
    helpers_that_pay,
)
from ldmprobe_core.pipeline.planning.plan import StudyPlan
from ldmprobe_core.pipeline.planning.rolling_seed import with_rolling_seed
from ldmprobe_core.storage.lease import Lease
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Execution
from tasks.artifacts import publish
from tasks.display import activity, duration, print_line, refresh
from tasks.progress import follow, largest_peaks
from tasks.references import RunRef, units_of
from tasks.study import accumulate, generate, label, prepare, probe, redo, summarise
from tasks.time_left import TimeLeft
from tasks.workload import CLOSING, expect_work

T = TypeVar("T")

_REDOS = 5
"""Largest number of repairs of corrupt data in one flow.

The number is limited because a failing disk would corrupt the repaired data again.
"""


@flow(name="study", flow_run_name="study {study.name}")
def study_flow(
    study: Study, store: str = "runs", schedule: Schedule | None = None
) -> dict[str, Any]:
    """Carry out a study, store its results in ``store``, and return its summary.

    The study's workers share the units of work.  Units that are already complete are skipped, so
    the same call also resumes an interrupted run.  Units whose stored data is corrupt are repeated.

    Args:
        study: study to carry out; every key has a default.
        store: folder or ``s3://bucket/prefix`` that contains runs.
        schedule: settings of scheduled runs, whose seeds follow from the date for which the flow
            run is scheduled; a flow run that is started by hand uses them only with a date.
    """
    day = scheduled_date(schedule)
    if day is not None:
        study = with_rolling_seed(study, day)
    with hold_study(study, store, wait_of(schedule, day)) as (plan, lease):
        with activity("creating the run, or reading its progress"):
            run = prepare(plan.study, store)
        summary = None if day is None else summary_if_finished(run, study, day)
        if summary is None:
            with workers_of(study.execution, worker_memory_limit(plan)):
                summary = with_repair(run, lambda: _run_to_summary(run, plan, lease))
    with activity("sending the results to Prefect"):
        publish(summary, run.url)
    if schedule is not None and day is not None:
        conclude(run, study.name, schedule)
    return summary


def with_repair(run: RunRef, work: Callable[[], T]) -> T:
    """Call ``work``, and call it again after a repair if it reads corrupt data.

    The repair marks the units that wrote the corrupt data as not done.  If the flow run is paused
    in Prefect, ``work`` is called again too, after the flow run is resumed.

    Args:
        run: run that contains the data.
        work: function that carries out every unit that is not complete.

    Raises:
        CorruptChunkError: there is still corrupt data after `_REDOS` repairs, or no unit of work
            writes the corrupt data, so that it cannot be repaired.
    """
    for _ in range(_REDOS):
        try:
            return with_pauses(work)
        except CorruptChunkError as damage:
            redo(run, damage.array)
    return with_pauses(work)


def _run_to_summary(run: RunRef, plan: StudyPlan, lease: Lease) -> dict[str, Any]:
    """Carry out all remaining units of a run, write its summary and report, return the summary."""
    execution = plan.study.execution
    verbs = ("generate", "label", "accumulate", "probe")
    left = expect_work(run, verbs, execution.workers, CLOSING)
    seconds, peaks = generate_and_label(run, execution, left)
    memory = _compared(plan, peaks)
    lease.require_held()
    seconds |= _accumulate(run, execution, left)
    lease.require_held()
    seconds["probe"] = _probe(run, execution, left)
    lease.require_held()
    with activity("summary and report") as shown:
        expected = left.of_flow(time.monotonic())
        if expected:
            refresh(shown, note=f"takes about {duration(expected)}")
        return summarise(run, seconds, memory)


def _compared(plan: StudyPlan, peaks: dict[str, int]) -> dict[str, PeakRecord]:
    """Compare the measured peaks of a worker's memory with the planned ones, and print both.

    Args:
        plan: plan of the study.
        peaks: measured bytes by name of the memory; empty if nothing was measured.
    """
    planned = planned_memory(plan, on_gpu="GPU memory" in peaks) if peaks else {}
    records = peak_records(planned, peaks)
    for name, one in records.items():
        print_line(
            f"peak {name} of a worker: {one.measured / 1e9:.2f} GB, planned "
            f"{one.planned / 1e9:.2f} GB"
        )
    return records


def generate_and_label(
    run: RunRef, execution: Execution, left: TimeLeft
) -> tuple[dict[str, float], dict[str, int]]:
    """Generate and label every batch.

    A batch is labeled as soon as it is generated, while other batches are still in progress.

    Returns:
        the seconds that each stage took, and the largest peak memory of a worker in bytes, by name.
    """
    with gpu_resources(execution):
        generated = submit_units(generate, units_of(run, "generate"))
        labeled = submit_units(label, units_of(run, "label"), after=list(generated.values()))
    stages = {
        "generate": follow("generate", generated, left),
        "label": follow("label", labeled, left),
    }
    seconds = {name: stage.seconds for name, stage in stages.items()}
    return seconds, largest_peaks(stages["generate"].peak, stages["label"].peak)


def _accumulate(run: RunRef, execution: Execution, left: TimeLeft) -> dict[str, float]:
    """Sum up sufficient statistics if the study asks for them; return the seconds taken.

    Different accumulators are filled in parallel.  The units of the same accumulator run one after
    another, because each adds to the sums of the one before.
    """
    units = units_of(run, "accumulate")
    if not units:
        return {}
    with gpu_resources(execution):
        futures = submit_units(accumulate, units)
    return {"tally": follow("tally", futures, left).seconds}


def _probe(run: RunRef, execution: Execution, left: TimeLeft) -> float:
    """Train and score the probes of every cell; return the seconds taken.

    Workers that are threads of this process share the work with helper processes, as far as the
    machine's memory has room for these.  Dask workers are processes already.
    """
    store, helpers = Run(run.url), 0
    if execution.runner == "local":
        helpers = min(execution.workers - 1, CPU_COUNT - 1, helpers_that_pay(store))
    # The size is asked for only if cells are left: activations of a finished run may be deleted.
    if helpers > 0:
        # This process needs memory for labels and a cell as well.
        helpers = number_with_room(helper_bytes(store), helpers + 1) - 1
    with cell_helpers(store, max(helpers, 0)):
        return follow("probe", submit_units(probe, units_of(run, "probe")), left).seconds
