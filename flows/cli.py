"""The ``ldmprobe`` command."""

from __future__ import annotations

import json
import logging
import os
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# Quiet defaults for whoever has not chosen otherwise: no telemetry, no bars inside our own.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.report.text import best_rows, headline
from ldmprobe_core.store import Run
from ldmprobe_core.study import load_study

app = typer.Typer(
    help="What a latent diffusion model knows, where, and how early.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

StudyArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a ready study")]
StoreOption = Annotated[str, typer.Option(help="folder or s3://bucket/prefix that holds runs")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as sampling.steps=20")
]


@app.command()
def run(
    study: StudyArgument = "tabletop",
    store: StoreOption = "runs",
    set_: SetOption = None,
) -> None:
    """Carry a study out, resume it, or show it where it is finished."""
    chosen = load_study(study, set_)
    from ldmprobe_core.planning import check_store, make_plan
    from ldmprobe_core.prompts import pin_inputs
    from ldmprobe_core.stages import check_origin, run_in

    chosen = pin_inputs(chosen)
    target = run_in(store, chosen)
    target.require_reachable()
    if target.has("summary.json"):
        check_origin(target, chosen)
        console.print(f"{target.url} is finished already; here is what it found.\n")
        _show(json.loads(target.read_text("summary.json")), target.url)
        return
    plan = make_plan(chosen)  # a mistake is found before a server is started for it
    plan.require_complete()
    check_store(plan, target)
    from flows.local import prefect_server, run_study, ui_url

    with prefect_server() as api:
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {target.url}\n", highlight=False)
        summary = run_study(chosen, store)
    _show(summary, target.url)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="folder or URL of a run")],
    json_: Annotated[bool, typer.Option("--json", help="print summary.json")] = False,
) -> None:
    """Show what a finished run found."""
    finished = Run(run.removesuffix("/summary.json"))
    finished.require_reachable()
    text = finished.read_text("summary.json")
    if json_:
        typer.echo(text, nl=False)
    else:
        _show(json.loads(text), finished.url)


@app.command()
def check(study: StudyArgument = "tabletop", set_: SetOption = None) -> None:
    """Check a study and print its sizes and what is missing here; no weights are loaded."""
    from ldmprobe_core.planning import make_plan

    chosen = load_study(study, set_)
    plan = make_plan(chosen)
    console.print(f"{chosen.name}, run {chosen.run_name}", highlight=False)
    batches = -(-plan.count // chosen.sampling.batch)
    console.print(
        f"{plan.count} samples in {batches} batches, "
        f"{len(plan.steps)} steps, {len(plan.shapes)} layers, {plan.cells} cells",
        highlight=False,
    )
    table = Table("layer", "height x width", "channels", box=None, pad_edge=False)
    for name, shape in plan.shapes.items():
        table.add_row(name, f"{shape.y} x {shape.x}", str(shape.channels))
    console.print(table)
    for kind, size in plan.bytes_of.items():
        each = f" ({size / plan.count / 1e6:.1f} MB an image)" if kind == "activations" else ""
        console.print(f"{kind}: {size / 1e6:.1f} MB{each}", highlight=False)
    console.print(f"about {plan.bytes / 1e9:.2f} GB before compression", highlight=False)
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan.memory.items())
    console.print(
        f"memory of a worker: about {sum(plan.memory.values()) / 1e9:.2f} GB ({parts}), and what "
        "text encoders and computing take",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in plan.missing:
        console.print(f"missing: {sentence}", highlight=False, markup=False, soft_wrap=True)


def _show(summary: dict[str, Any], url: str) -> None:
    """A column a property: three of them fit a narrow terminal."""
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
    try:
        app()
    except (UserError, RunError) as error:
        Console(stderr=True).print(f"ldmprobe: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    main()
