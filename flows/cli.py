"""The ``ldmprobe`` command."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# Defaults unless the environment says otherwise: no telemetry, no progress bars of libraries.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Everything heavier is imported by the command that needs it: --help answers at once.
from ldmprobe_core.errors import RunError, UserError

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.pipeline.planning.plan import StudyPlan
    from ldmprobe_core.storage.run import Run

app = typer.Typer(
    help="What a latent diffusion model knows, where, and how early.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

_STUDY_LIMIT = 400_000
"""Bytes; Prefect takes parameters of up to 512 KiB."""

StudyArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a ready study")]
StoreOption = Annotated[str, typer.Option(help="folder or s3://bucket/prefix that holds runs")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as sampling.steps=20")
]


RunArgument = Annotated[str, typer.Argument(help="folder or URL of a run")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


@app.command()
def run(
    study: StudyArgument = "tabletop",
    store: StoreOption = "runs",
    set_: SetOption = None,
) -> None:
    """Carry a study out, resume it, or show it where it is finished."""
    from ldmprobe_core.analysis.records import Summary, load_summary
    from ldmprobe_core.pipeline.prepare import check_origin

    plan, target = _plan(study, store, set_)
    if target.location.has("summary.json"):
        check_origin(target, plan.study)
        console.print(f"{target.url} is finished already; here is what it found.\n")
        _show(load_summary(target), target.url)
        return
    _require_ready(plan, target)
    from flows.server import prefect_server, run_flow, ui_url
    from flows.study import study_flow

    with prefect_server() as api, plan.in_use():
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {target.url}\n", highlight=False)
        summary = run_flow(study_flow, study=plan.study, store=store)
    _show(Summary.model_validate(summary), target.url)


@app.command()
def classify(
    study: StudyArgument = "tabletop",
    store: StoreOption = "runs",
    set_: SetOption = None,
    photographs: Annotated[
        str | None, typer.Option(help="folder of real pictures for the same classifier")
    ] = None,
) -> None:
    """When is the object named? Generate and label only; a later run continues from here."""
    from ldmprobe_core.analysis.records import ClassesRecord
    from ldmprobe_core.analysis.report.text import classes_line
    from ldmprobe_core.study.readers.image_folder import list_images

    plan, target = _plan(study, store, set_)
    if plan.study.labels.classes is None:
        raise UserError("labels.class is null, and classify needs a class labeler: name one")
    if photographs is not None:
        list_images(photographs)
    _require_ready(plan, target)
    from flows.classify import classify_flow
    from flows.server import prefect_server, run_flow, ui_url

    with prefect_server() as api, plan.in_use():
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {target.url}\n", highlight=False)
        found = run_flow(classify_flow, study=plan.study, store=store, photographs=photographs)
    console.print(classes_line(ClassesRecord.model_validate(found)), highlight=False)
    if found["photographs"]:
        real = found["photographs"]
        console.print(
            f"Of {real['count']} real pictures {real['confident']:.1%} have a top probability "
            "above 90%.",
            highlight=False,
        )


@app.command()
def intervene(
    run: RunArgument,
    prop: Annotated[str, typer.Option("--property", help="foreground or depth")] = "foreground",
    shift: Annotated[
        list[str] | None,
        typer.Option(help="dx,dy as shares of width and height, such as 0.2,0; may be repeated"),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="PNG or NPY map to aim for; may be repeated")
    ] = None,
    samples: Annotated[int, typer.Option(help="how many test samples")] = 8,
    method: Annotated[str, typer.Option(help="exact, or adam (the paper's)")] = "exact",
    layers: Annotated[
        list[str] | None, typer.Option(help="glob over the run's layers; may be repeated")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="how many of the first steps")] = None,
    strength: Annotated[float, typer.Option(help="share of the way, 0 to 1")] = 1.0,
    confidence: Annotated[
        float, typer.Option(help="what a logistic probe is to read inside the mask")
    ] = 0.98,
    metric: Annotated[str, typer.Option(help="covariance or l2")] = "covariance",
    controls: Annotated[bool, typer.Option(help="also edit at random and through shuffled")] = True,
) -> None:
    """Edit activations until probes read a target, denoise on, and score the images."""
    from ldmprobe_core.analysis.report.text import effect_rows
    from ldmprobe_core.interventions.results import InterventionSummary
    from ldmprobe_core.interventions.spec import parse_intervention
    from ldmprobe_core.interventions.stages import create_intervention

    finished = _finished(run)
    content: dict[str, Any] = {
        "prop": prop, "samples": samples, "method": method, "steps": steps, "strength": strength,
        "confidence": confidence, "metric": metric, "controls": controls,
        "layers": tuple(layers) if layers else None,
    }  # fmt: skip
    content["targets"] = tuple(
        [_shift(text) for text in shift or ([] if target else ["0.2,0"])]
        + [{"file": path} for path in target or []]
    )
    what = parse_intervention(content)
    create_intervention(finished, what)
    from flows.intervene import intervene_flow
    from flows.server import prefect_server, run_flow, ui_url

    with prefect_server() as api:
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {finished.url}\n", highlight=False)
        found = run_flow(intervene_flow, url=finished.url, what=what)
    rows = effect_rows(InterventionSummary.model_validate(found))
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row.values())
    console.print(table, highlight=False)
    console.print(f"\nReport: {finished.url}/report/index.html", highlight=False, soft_wrap=True)


def _shift(text: str) -> dict[str, float]:
    parts = text.split(",")
    try:
        dx, dy = (float(part) for part in parts)
    except ValueError:
        raise UserError(
            f"--shift is {text!r}: give dx,dy as shares of the image, such as 0.2,0"
        ) from None
    return {"dx": dx, "dy": dy}


def _plan(study: str, store: str, overrides: list[str] | None) -> tuple[StudyPlan, Run]:
    """Plan a study, and give the handle of its run, which may not exist yet."""
    from ldmprobe_core.pipeline.planning.plan import plan_study
    from ldmprobe_core.pipeline.prepare import run_in
    from ldmprobe_core.study.loading import load_study

    plan = plan_study(load_study(study, overrides))
    if not plan.samples:
        plan.require_complete()  # its input files are not here
    size = len(plan.study.to_json())
    if size > _STUDY_LIMIT:
        raise UserError(
            f"prompts.items makes the study {size / 1000:.0f} kB, and a flow's parameters may be "
            f"{_STUDY_LIMIT / 1000:.0f}: put the prompts into a CSV file, and name it in "
            "prompts.files"
        )
    target = run_in(store, plan.study)
    target.location.require_reachable()
    return plan, target


def _require_ready(plan: StudyPlan, target: Run) -> None:
    """Report mistakes before a server is started."""
    from ldmprobe_core.pipeline.planning.plan import check_store

    plan.require_complete()
    check_store(plan, target)


@app.command()
def show(run: RunArgument, json_: JsonOption = False) -> None:
    """Show what a finished run found."""
    from ldmprobe_core.analysis.records import load_summary

    finished = _finished(run)
    summary = load_summary(finished)
    if json_:
        typer.echo(finished.location.read_text("summary.json"), nl=False)
    else:
        _show(summary, finished.url)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="runs; the first is the reference")],
    json_: JsonOption = False,
) -> None:
    """Set finished runs side by side; paired where they hold the same samples."""
    from ldmprobe_core.analysis.compare import compare as rows_of

    rows = rows_of([_finished(run) for run in runs])
    if json_:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row.values())
    console.print(table, highlight=False)


@app.command()
def verify(
    run: RunArgument,
    redo: Annotated[
        bool, typer.Option("--redo", help="have the next `run` make again what is damaged")
    ] = False,
) -> None:
    """Read a run's every chunk, and name those that are missing or not as they were written."""
    from ldmprobe_core.storage.run import Run
    from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

    target = Run(run)
    target.location.require_reachable()
    target.study  # noqa: B018  (raises if there is no run)
    damage = list(find_corrupt_chunks(target))
    for chunk in damage:
        console.print(f"{chunk.key}: {chunk.reason}", highlight=False, markup=False, soft_wrap=True)
    if not damage:
        console.print("every chunk is as it was written", highlight=False)
        return
    if not redo:
        raise RunError(f"{len(damage)} chunks are damaged: --redo has the next run make them again")
    left = clear_progress(target, damage)
    target.location.remove("summary.json")
    if left:
        raise RunError(
            f"{left[0].key} cannot be made again from what is there: restore the run from a copy, "
            "or move it away and start again"
        )
    console.print(f"{len(damage)} chunks will be made again by the next run", highlight=False)


@app.command()
def report(
    run: RunArgument,
    samples: Annotated[
        str | None, typer.Option(help="held-out samples to show, such as 3,17")
    ] = None,
) -> None:
    """Rebuild a finished run's report; nothing is generated, labeled or probed."""
    from ldmprobe_core.analysis.report.build import rebuild_report

    finished = _finished(run)
    chosen = None
    if samples is not None:
        parts = samples.split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise UserError(f"--samples is {samples!r}: give whole numbers, such as 3,17")
        chosen = tuple(int(part) for part in parts)
    rebuild_report(finished, chosen)
    console.print(f"{finished.url}/report/index.html", highlight=False, soft_wrap=True)


@app.command(name="open")
def open_(run: RunArgument) -> None:
    """Open a finished run's report in the browser."""
    finished = _finished(run)
    if finished.location.remote:
        raise UserError(f"{finished.url} is not a folder: fetch its report folder and open that")
    page = Path(finished.url).absolute() / "report" / "index.html"
    console.print(page.as_uri(), highlight=False, soft_wrap=True)
    typer.launch(page.as_uri())


def _finished(run: str) -> Run:
    """A run that has a summary.

    Raises:
        UserError: there is none.
    """
    from ldmprobe_core.storage.run import Run

    found = Run(run.removesuffix("/summary.json"))
    found.location.require_reachable()
    found.location.read_bytes("summary.json")
    return found


@app.command()
def check(study: StudyArgument = "tabletop", set_: SetOption = None) -> None:
    """Check a study and print its sizes and what is missing here; no weights are loaded."""
    from ldmprobe_core.pipeline.planning.plan import plan_study
    from ldmprobe_core.study.loading import load_study

    plan = plan_study(load_study(study, set_))
    chosen = plan.study
    console.print(f"{chosen.name}, run {chosen.run_name}", highlight=False)
    batches = -(-plan.count // chosen.sampling.batch)
    kept = f", {plan.n_stored} of them stored" if plan.n_stored < plan.count else ""
    console.print(
        f"{plan.count} samples in {batches} batches{kept}, "
        f"{len(plan.steps)} steps, {len(plan.layers)} layers, {plan.cells} cells",
        highlight=False,
    )
    table = Table("layer", "height x width", "channels", box=None, pad_edge=False)
    for name, shape in plan.shapes.items():
        table.add_row(name, f"{shape.y} x {shape.x}", str(shape.channels))
    console.print(table)
    for kind, size in plan.bytes_of.items():
        each = f" ({size / plan.n_stored / 1e6:.1f} MB an image)" if kind == "activations" else ""
        console.print(f"{kind}: {size / 1e6:.1f} MB{each}", highlight=False)
    console.print(f"about {plan.bytes / 1e9:.2f} GB before compression", highlight=False)
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan.memory.items())
    console.print(
        f"memory of a worker: about {sum(plan.memory.values()) / 1e9:.2f} GB ({parts}), and what "
        "text encoders and computing take",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in plan.notes:
        console.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)
    for sentence in plan.missing:
        console.print(f"missing: {sentence}", highlight=False, markup=False, soft_wrap=True)


def _show(summary: Summary, url: str) -> None:
    """A column a property: three of them fit a narrow terminal."""
    from ldmprobe_core.analysis.report.text import best_rows, headline

    rows = best_rows(summary)
    table = Table("", *(row["property"] for row in rows), box=None, pad_edge=False)
    for key in rows[0]:
        if key != "property":
            table.add_row(key, *(row[key] for row in rows))
    console.print(table, highlight=False)
    console.print()
    for line in headline(summary):
        console.print(f"• {line}", highlight=False)
    console.print(f"\nReport: {url.rstrip('/')}/report/index.html", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: what stops a run is one sentence on standard error.

    Exit code 2 is a mistake that the user can mend, 1 a run that did not come to its end.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for a dash
    try:
        app()
    except (UserError, RunError) as error:
        Console(stderr=True).print(f"ldmprobe: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    main()
