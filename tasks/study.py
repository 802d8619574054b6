"""Prefect tasks of the study and classify flows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from ldmprobe_core.models.devices import peak_memory
from ldmprobe_core.pipeline.environments import change_notes
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import carry_out_unit
from ldmprobe_core.storage.lifecycle.retention import (
    Retention,
    apply_retention,
    plan_retention,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.schema import LAYOUT_VERSION, Study
from tasks.references import RunRef, UnitRef
from tasks.retries import RETRIES
from tasks.stopping import require_not_stopped

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import PeakRecord


def unit_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return the key under which Prefect caches the result of a unit of work.

    The run's progress record decides which units are complete.  For any other unit this function
    returns None, so that Prefect carries the unit out instead of using a cached result.  The key
    contains `LAYOUT_VERSION` because a new release may compute a different result for the unit.
    """
    unit: UnitRef = parameters["unit"]
    if not unit.is_done:
        return None
    index = "-".join(str(part) for part in unit.index)
    return f"ldmprobe-{LAYOUT_VERSION}-{context.task.name}-{unit.run.identity}-{index}"


def carry_out(unit: UnitRef) -> dict[str, Any]:
    """Carry out one unit, and return its result: counts, seconds, bytes and peak memory.

    The result is logged.  The peak memory is that of this process so far, by the names of
    `peak_memory`; there is none if the unit was complete already.
    """
    require_not_stopped()
    result = carry_out_unit(unit.verb, unit.run.url, *unit.index)
    amounts = [f"{value} {name}" for name, value in result.items() if name not in _MEASURES]
    measures = [f"{result['seconds']:.2f} s"]
    if "bytes" in result:
        measures.append(f"{result['bytes'] / 1e6:.1f} MB")
    peaks = peak_memory()
    measures += [f"peak {name} {size / 1e9:.2f} GB" for name, size in peaks.items()]
    get_run_logger().info(", ".join(amounts + measures))
    return result | {"peak": peaks} if result["seconds"] else result


_MEASURES = ("seconds", "bytes")

_UNIT_OPTIONS: dict[str, Any] = {
    **RETRIES,
    "task_run_name": "{unit.title}",
    "cache_key_fn": unit_key,
    "persist_result": True,
    "result_serializer": "json",
}


@task(name="prepare", task_run_name="prepare {study.name}")
def prepare(study: Study, store: str) -> RunRef:
    """Check a study, and create its run unless the run exists."""
    run = prepare_run(study, store)
    get_run_logger().info("run at %s", run.url)
    if not run.location.has("summary.json"):
        for sentence in change_notes(run):
            get_run_logger().warning(sentence)
    return RunRef(url=run.url, identity=run.location.read_text("identity").strip())


@task(name="generate", **_UNIT_OPTIONS)
def generate(unit: UnitRef) -> dict[str, Any]:
    """Generate one batch, and write its images and activations to the store."""
    return carry_out(unit)


@task(name="label", **_UNIT_OPTIONS)
def label(unit: UnitRef) -> dict[str, Any]:
    """Label the finished images of one batch, and the images decoded at each step."""
    return carry_out(unit)


@task(name="tally", **_UNIT_OPTIONS)
def accumulate(unit: UnitRef) -> dict[str, Any]:
    """Add the training samples of a few batches to the sums from which probes are trained."""
    return carry_out(unit)


@task(name="probe", **_UNIT_OPTIONS)
def probe(unit: UnitRef) -> dict[str, Any]:
    """Train and score all probes of one cell (a step and a layer), and its control probes."""
    return carry_out(unit)


@task(name="redo", task_run_name="redo what is damaged in {array}")
def redo(run: RunRef, array: str) -> None:
    """Mark units that wrote corrupt chunks of an array as not done, to have them carried out again.

    Raises:
        CorruptChunkError: no unit of work writes a corrupt chunk, so it cannot be repaired.
    """
    store = Run(run.url)
    corrupt = list(find_corrupt_chunks(store, array))
    for chunk in corrupt:
        get_run_logger().warning("%s is %s; its unit is repeated", chunk.key, chunk.reason)
    finished = store.location.has("summary.json")
    beyond_repair = clear_progress(store, corrupt).beyond_repair
    if finished and not store.location.has("summary.json"):
        get_run_logger().warning("summary.json is removed; the study flow writes it again")
    if beyond_repair:
        raise beyond_repair[0]


@task(name="summarise", task_run_name="summarise {run.url}")
def summarise(
    run: RunRef, seconds: dict[str, float], memory: dict[str, PeakRecord] | None = None
) -> dict[str, Any]:
    """Summarise all scores, and write summary.json and the report."""
    # Dask workers import this module for the other tasks, and need neither scikit-learn nor
    # Matplotlib for them.
    from ldmprobe_core.analysis.report.build import build_report
    from ldmprobe_core.analysis.report.drawing.second_process import (
        pays_second_process,
        second_process,
    )

    store = Run(run.url)
    with second_process() if pays_second_process(store) else nullcontext() as second:
        summary = build_report(store, seconds, memory=memory, second=second)
    return summary.model_dump(mode="json", by_alias=True)


@task(name="classify", task_run_name="classify {run.url}")
def classify(run: RunRef, photographs: str | None) -> dict[str, Any]:
    """Summarise class scores over the steps, and classify the photographs if a folder is given."""
    from ldmprobe_core.analysis.classes.curves import class_curves
    from ldmprobe_core.analysis.classes.photographs import classify_photographs

    store = Run(run.url)
    if photographs is not None:
        classify_photographs(store, photographs)
    return class_curves(store).model_dump(mode="json")


@task(name="retention", task_run_name="retention of {study}", persist_result=False)
def prune_scheduled_runs(
    run: RunRef, study: str, keep: int | None, keep_activations: int | None
) -> list[Retention]:
    """Delete old scheduled runs of a study, or their activations, and return what was done.

    Args:
        run: run that has just been finished, which is not deleted.
        study: name of the study.
        keep: number of finished scheduled runs to keep; None keeps all.
        keep_activations: number of these runs whose activations to keep; None keeps all.
    """
    store = run.url.rpartition("/")[0]
    plan = plan_retention(
        store, study, keep, keep_activations, scheduled_only=True, protected=run.url
    )
    return apply_retention(plan, study)
