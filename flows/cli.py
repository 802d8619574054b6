"""Command line ``ldmprobe``: its main commands; `flows.commands` has further ones."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# Turn off telemetry and the progress bars of libraries, unless the user has set these variables.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Figures are files.  A backend that this installation lacks, such as that of a notebook from which
# the command is called, would end a study when its report is drawn.
os.environ["MPLBACKEND"] = "agg"

# Commands import slow modules such as torch and Prefect when they run, so that --help is fast.
from flows.checks.finished_run import RunArgument, finished_run
from flows.commands.carry_out import carry_out, with_live_line
from flows.commands.errors import EXIT_CODES, MISTAKE, debug_requested, prepare_streams, run_command
from flows.commands.exports import export, index
from flows.commands.fetch import fetch
from flows.commands.idle_interrupts import answer_interrupts
from flows.commands.intervene import intervene
from flows.commands.list_watch import Version, list_, watch
from flows.commands.planning import plan_study_alone, planned, require_ready, with_trials
from flows.commands.prune import prune
from flows.commands.results import console, write
from flows.commands.submit import submit
from flows.commands.tables import (
    print_comparison,
    print_missing,
    print_photographs,
    print_plan,
    print_summary,
)
from ldmprobe_core.errors import RunError, UserError, counted, verb
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from tasks.display import activity

if TYPE_CHECKING:
    from ldmprobe_core.storage.run import Run
    from ldmprobe_core.storage.verify import Repair

app = typer.Typer(
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

StudyArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a built-in study")]
StoreOption = Annotated[str, typer.Option(help="folder or s3://bucket/prefix that holds runs")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as sampling.steps=20")
]


JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="print the traceback of a failure (or LDMPROBE_DEBUG=1)")
    ] = False,
    version: Version = False,
) -> None:
    """Probe what a latent diffusion model knows, in which layers, and how early in denoising."""
    # Declare ``debug`` so that --help shows it, although `main` looks for --debug by itself.
    # --version ends the command before this function is called.


@app.command()
@with_live_line
def run(
    study: StudyArgument = "tabletop",
    store: StoreOption = "runs",
    set_: SetOption = None,
) -> None:
    """Carry out a study, resume it, or show its results if it is finished."""
    with planned(study, store, set_) as (plan, target, server):
        # Imported after the study is read, so that its mistakes are reported without delay.
        from ldmprobe_core.analysis.records import Summary, load_summary
        from ldmprobe_core.pipeline.prepare import check_fingerprints

        if target.location.has("summary.json"):
            check_fingerprints(target, plan.study)
            summary = load_summary(target)
            console.print(
                f"{target.url} is finished already; these are its results.\n",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        else:
            require_ready(plan, target)
            with plan.in_use():
                found = carry_out("study", target.url, server, study=plan.study, store=store)
            summary = Summary.model_validate(found)
    print_summary(summary, target.url, console)


@app.command()
@with_live_line
def classify(
    study: StudyArgument = "tabletop",
    store: StoreOption = "runs",
    set_: SetOption = None,
    photographs: Annotated[
        str | None, typer.Option(help="folder of real pictures for the same classifier")
    ] = None,
) -> None:
    """Find the step from which a classifier names the object; a later `run` continues from here."""
    with planned(study, store, set_) as (plan, target, server):
        # Imported after the study is read, so that its mistakes are reported without delay.
        from ldmprobe_core.analysis.classes.records import ClassesRecord
        from ldmprobe_core.analysis.report.text import classes_line
        from ldmprobe_core.study.readers.image_folder import list_images

        if plan.study.labels.classes is None:
            raise UserError(
                "labels.class is null, but classify needs it. Fix: give a class labeler."
            )
        if photographs is not None:
            list_images(photographs, plan.study.map_properties)
        require_ready(plan, target)
        with plan.in_use():
            found = carry_out(
                "classify", target.url, server,
                study=plan.study, store=store, photographs=photographs,
            )  # fmt: skip
    console.print(classes_line(ClassesRecord.model_validate(found)), highlight=False)
    print_photographs(found["photographs"], console)


app.command()(with_live_line(export))
app.command()(with_live_line(index))
app.command()(fetch)
app.command()(with_live_line(intervene))
app.command(name="list")(with_live_line(list_))
app.command()(with_live_line(prune))
app.command()(watch)
app.command()(submit)


@app.command()
@with_live_line
def show(run: RunArgument, json_: JsonOption = False) -> None:
    """Show the results of a finished run."""
    from ldmprobe_core.analysis.records import load_summary

    finished = finished_run(run)
    summary = load_summary(finished)
    if json_:
        write(finished.location.read_text("summary.json"), newline=False)
    else:
        print_summary(summary, finished.url, console)


@app.command()
@with_live_line
def compare(
    runs: Annotated[list[str], typer.Argument(help="runs; the first is the reference")],
    json_: JsonOption = False,
) -> None:
    """Compare finished runs, paired over the samples that they share."""
    from ldmprobe_core.analysis.compare import compare as rows_of
    from ldmprobe_core.analysis.compare import difference_notes
    from ldmprobe_core.storage.lifecycle.reading import reading

    finished = [finished_run(run) for run in runs]
    addresses = [run.url for run in finished]
    with reading("ldmprobe compare", *addresses), activity("reading the scores"):
        rows = rows_of(finished)
    if json_:
        write(json.dumps(rows, indent=2))
        return
    print_comparison(rows, console)
    for sentence in difference_notes(finished):
        console.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)


@app.command()
@with_live_line
def verify(
    run: RunArgument,
    redo: Annotated[
        bool,
        typer.Option(
            "--redo", help="mark damaged units of work, so that the next `run` repeats them"
        ),
    ] = False,
) -> None:
    """Read every chunk and the summaries of a run, and list what is missing or damaged."""
    from ldmprobe_core.storage.lease import hold_lease
    from ldmprobe_core.storage.lifecycle.reading import reading
    from ldmprobe_core.storage.run import Run
    from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks

    target = Run(run)
    target.location.require_reachable()
    target.study  # noqa: B018  (raises if there is no run)
    # A flow that works on the run would take a unit that is marked meanwhile for complete.
    with hold_lease(target.url, "ldmprobe verify") if redo else nullcontext() as lease:
        if redo:
            _restore_settings(target)
        with reading("ldmprobe verify", target.url), activity("reading every chunk"):
            damage = list(find_corrupt_chunks(target))
        for chunk in damage:
            console.print(
                f"{chunk.key}: {chunk.reason}", highlight=False, markup=False, soft_wrap=True
            )
        if not damage:
            console.print("every chunk is as it was written", highlight=False)
            _check_records(target)
            return
        if lease is None:
            raise RunError(
                f"{counted(len(damage), 'chunk')} {verb(len(damage))} damaged. Fix: verify "
                "--redo, which says what follows."
            )
        lease.require_held()
        repair = clear_progress(target, damage)
    for sentence in _repair_sentences(repair):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if repair.beyond_repair:
        raise _beyond_repair(repair)


def _restore_settings(run: Run) -> None:
    """Write damaged settings of interventions again, before a repair removes their summaries."""
    from ldmprobe_core.interventions.results import restore_intervention, started_interventions

    for name in started_interventions(run):
        if restore_intervention(run, name):
            sentence = f"edits/{name}/intervention.json is restored from the summary beside it"
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _check_records(run: Run) -> None:
    """Check that the summaries of a run and its interventions, and their settings, can be read.

    Raises:
        RunError: a record is damaged; the message says which command writes it again.
    """
    from ldmprobe_core.analysis.records import load_summary
    from ldmprobe_core.interventions.results import (
        has_intervention_summary,
        read_intervention,
        read_intervention_summary,
        started_interventions,
    )

    if run.location.has("summary.json"):
        load_summary(run)
    for name in started_interventions(run):
        if has_intervention_summary(run, name):
            read_intervention_summary(run, name)
        read_intervention(run, name)


def _beyond_repair(repair: Repair) -> RunError:
    """Build the error for chunks that no unit of the run, or of an intervention, writes again."""
    keys = [chunk.key for chunk in repair.beyond_repair]
    if of_run := [key for key in keys if not key.startswith("interventions/")]:
        return RunError(
            f"{of_run[0]} is damaged, and cannot be computed from the rest of the run. Fix: "
            "restore the run from a copy, or move it away and start again."
        )
    name = keys[0].split("/")[1]
    return RunError(
        f"{keys[0]} is damaged, and only the creation of the intervention writes it. Fix: note the "
        f"options in edits/{name}/intervention.json, remove interventions/{name} and edits/{name}, "
        "and repeat `ldmprobe intervene` with these options."
    )


def _repair_sentences(repair: Repair) -> list[str]:
    """Say which commands repeat the units that were marked, or that all is restored."""
    sentences = []
    if repair.of_run:
        units = f"{counted(repair.of_run, 'unit')} of work"
        sentences.append(f"{units} with damaged chunks will be repeated by the next run")
    for name in repair.interventions:
        sentences.append(
            f"the damaged edits of {name} will be repeated by `ldmprobe intervene` with the same "
            f"options, which are in edits/{name}/intervention.json"
        )
    if not sentences and not repair.beyond_repair:
        sentences.append("the damaged metadata is restored; every chunk is whole")
    return sentences


@app.command()
@with_live_line
def report(
    run: RunArgument,
    samples: Annotated[
        str | None, typer.Option(help="held-out samples to show, such as 3,17")
    ] = None,
) -> None:
    """Rebuild a finished run's report without generating, labeling or probing."""
    from ldmprobe_core.analysis.report.drawing.second_process import second_process

    # Start the second process before importing other modules, so that both import side by side.
    with second_process() as second:
        finished = finished_run(run)
        from ldmprobe_core.analysis.report.build import rebuild_report
        from ldmprobe_core.storage.lifecycle.reading import reading

        chosen = None
        if samples is not None:
            parts = samples.split(",")
            if not all(part.strip().isdecimal() for part in parts):
                raise UserError(f"--samples is {samples!r}. Fix: give whole numbers, such as 3,17.")
            chosen = tuple(int(part) for part in parts)
        with reading("ldmprobe report", finished.url), activity("drawing figures and pages"):
            rebuild_report(finished, chosen, second)
    console.print(f"{finished.url}/report/index.html", highlight=False, soft_wrap=True)


@app.command(name="open")
def open_(run: RunArgument) -> None:
    """Open a finished run's report in the browser."""
    finished = finished_run(run)
    if finished.location.remote:
        raise UserError(
            f"{finished.url} is a remote run. Fix: download its folder report/, and open "
            "index.html in that folder."
        )
    page = Path(finished.url).absolute() / "report" / "index.html"
    console.print(page.as_uri(), highlight=False, soft_wrap=True)
    typer.launch(page.as_uri())


@app.command()
@with_live_line
def check(study: StudyArgument = "tabletop", set_: SetOption = None) -> None:
    """Print a study's sizes and missing requirements (exit code 1) without loading weights."""
    from ldmprobe_core.study.loading import load_study

    with activity("reading the study and the model's configuration"):
        plan = with_trials(plan_study_alone(load_study(study, set_)))
    if plan.missing:
        print_missing(plan.missing)
    print_plan(plan, console)
    if plan.missing:
        raise typer.Exit(MISTAKE)


def main() -> None:
    """Run the ``ldmprobe`` command, and exit with one of the codes in `EXIT_CODES`.

    A command that fails prints a one-sentence message on standard error.
    """
    prepare_streams()
    answer_interrupts()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Accept --debug anywhere on the line, because users append it to a command that just failed.
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    bypass_proxies_for_loopback()
    code = run_command(lambda: app(arguments), debug_requested(sys.argv[1:]))
    if "flows.interruption" in sys.modules:
        sys.modules["flows.interruption"].limit_exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
