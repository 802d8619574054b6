"""The tasks of a study."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from ldmprobe_core.analysis.class_curves import class_curves, classify_photographs
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.schema import LAYOUT_VERSION, Study
from tasks.references import AccumulationRef, BatchRef, CellRef, RunRef
from tasks.retries import RETRIES


def unit_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Cache key of a unit of work: layout version, verb, run identity, and which unit.

    Code is not part of it: `LAYOUT_VERSION` is raised when the same unit would come out otherwise.
    The store's mark decides what is done, never the cache: a unit without its mark has no key, so
    it is carried out whatever Prefect remembers.
    """
    (unit,) = parameters.values()
    if not is_done(context.task.name, unit):
        return None
    which = "-".join(str(part) for part in unit.place)
    return f"ldmprobe-{LAYOUT_VERSION}-{context.task.name}-{unit.run.identity}-{which}"


def is_done(verb: str, unit: BatchRef | AccumulationRef | CellRef) -> bool:
    """The store has the mark of this unit."""
    run = Run(unit.run.url)
    if isinstance(unit, CellRef):
        return run.progress.is_done("probed", unit.step - 1, run.probe_inputs.index(unit.layer))
    if isinstance(unit, AccumulationRef):
        return run.progress.count("accumulated", unit.part) > unit.number
    return run.progress.is_done({"generate": "generated", "label": "labeled"}[verb], unit.number)


_UNIT_OPTIONS: dict[str, Any] = {
    **RETRIES,
    "cache_key_fn": unit_key,
    "persist_result": True,
    "result_serializer": "json",
}


@task(name="prepare", task_run_name="prepare {study.name}")
def prepare(study: Study, store: str) -> RunRef:
    """Check the study and lay its run out, or find it."""
    run = prepare_run(study, store)
    get_run_logger().info("run at %s", run.url)
    return RunRef(url=run.url, identity=run.location.read_text("identity").strip())


@task(
    name="generate",
    task_run_name="batch {batch.number:04d} · samples {batch.first}-{batch.last}",
    **_UNIT_OPTIONS,
)
def generate(batch: BatchRef) -> dict[str, Any]:
    """Generate one batch: images and activations into the store."""
    done = generate_batch(batch.run.url, batch.number)
    get_run_logger().info(
        "%d samples, %.1f s, %.1f MB", done["samples"], done["seconds"], done["bytes"] / 1e6
    )
    return done


@task(
    name="label",
    task_run_name="label {batch.number:04d} · samples {batch.first}-{batch.last}",
    **_UNIT_OPTIONS,
)
def label(batch: BatchRef) -> dict[str, Any]:
    """Label one batch's finished images and step images."""
    done = label_batch(batch.run.url, batch.number)
    get_run_logger().info(
        "%d images, %.1f s, %.1f MB", done["images"], done["seconds"], done["bytes"] / 1e6
    )
    return done


@task(
    name="tally",
    task_run_name="part {unit.part} unit {unit.number:04d} · samples {unit.first}-{unit.last}",
    **_UNIT_OPTIONS,
)
def tally(unit: AccumulationRef) -> dict[str, Any]:
    """Add the training samples of a few batches to a part's statistics."""
    done = accumulate_unit(unit.run.url, unit.part, unit.number)
    get_run_logger().info(
        "%d samples, %.1f s, %.1f MB", done["samples"], done["seconds"], done["bytes"] / 1e6
    )
    return done


@task(
    name="probe",
    task_run_name="cell step {cell.step:02d} · {cell.layer}",
    **_UNIT_OPTIONS,
)
def probe(cell: CellRef) -> dict[str, Any]:
    """Train and score every probe and control of one cell."""
    done = probe_cell(cell.run.url, cell.step, cell.layer)
    get_run_logger().info("%.2f s, %.1f MB read", done["seconds"], done["bytes"] / 1e6)
    return done


@task(name="redo", task_run_name="redo what is damaged in {array}")
def redo(run: RunRef, array: str) -> None:
    """Look through an array, and take back the marks of the units that made what is damaged.

    Raises:
        DamageError: no unit of work makes it.
    """
    store = Run(run.url)
    damage = list(find_corrupt_chunks(store, array))
    for chunk in damage:
        get_run_logger().warning("%s is %s, and its unit is done again", chunk.key, chunk.reason)
    left = clear_progress(store, damage)
    if left:
        raise left[0]


@task(name="summarise", task_run_name="summarise {run.url}")
def summarise(run: RunRef, seconds: dict[str, float]) -> dict[str, Any]:
    """Condense all scores, write summary.json and the report."""
    summary = build_report(Run(run.url), seconds)
    return summary.model_dump(mode="json", by_alias=True)


@task(name="classify", task_run_name="classify {run.url}")
def classify(run: RunRef, photographs: str | None) -> dict[str, Any]:
    """Condense class scores over the steps; show real pictures to the same labeler, if any."""
    store = Run(run.url)
    if photographs is not None:
        classify_photographs(store, photographs)
    study = store.study
    curves = class_curves(store, study.bootstrap.level, study.bootstrap.resamples)
    return curves.model_dump(mode="json")
