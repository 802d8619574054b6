"""Functions that print plans, summaries and comparisons on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flows.checks.worker_memory import memory_lines
from flows.commands.results import ResultConsole
from ldmprobe_core.errors import counted

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import PropertyRecord, Summary
    from ldmprobe_core.pipeline.planning.plan import StudyPlan


_FEW_WORDS = 100
"""Number of classes up to which a note says that a classifier knows few."""

_NAME_WIDTH = 16
"""Number of characters that a row's name gets before it is broken into lines."""

_GAP = 2
"""Number of spaces between two columns."""


def print_rows(rows: Sequence[Mapping[str, str]], console: Console, names: int = 1) -> None:
    """Print a table with one row per record; all records have the same keys, the columns.

    Columns that do not fit beside each other follow in further tables, so that values are not
    broken into lines.

    Args:
        rows: records.
        console: console to print to.
        names: number of leading columns that name a row; every table has them.
    """
    headings = list(rows[0])
    widths = {
        key: max(len(text) for text in (*key.split(), *(row[key] for row in rows)))
        for key in headings
    }
    for key in headings[:names]:
        # A name may be broken into lines between its words.
        words = [word for row in rows for word in row[key].split()]
        widths[key] = max(map(len, (*words, "x" * min(widths[key], _NAME_WIDTH))))
    for i, part in enumerate(_columns_that_fit(headings, widths, names, console.width)):
        if i:
            console.print()
        table = _table()
        # Rich breaks the widest columns first, so values get a width of their own, and the last
        # name takes the room that the other columns leave.
        room = console.width
        for key in part:
            if key not in headings[:names]:
                widths[key] = min(widths[key], console.width // (names + 1))
            if key != headings[names - 1]:
                room -= widths[key] + _GAP
        for key in part:
            if key == headings[names - 1]:
                table.add_column(key, overflow="fold", max_width=max(room, 1))
            else:
                table.add_column(key, overflow="fold", width=widths[key])
        for row in rows:
            table.add_row(*(row[key] for key in part))
        console.print(table, highlight=False)


def _columns_that_fit(
    headings: Sequence[str], widths: Mapping[str, int], names: int, room: int
) -> list[list[str]]:
    """Divide columns into tables that are no wider than a line, where that is possible.

    Args:
        headings: all columns.
        widths: number of characters that each of them needs.
        names: number of leading columns that every table repeats.
        room: number of characters of a line.
    """
    leading = list(headings[:names])
    parts = [leading]
    for key in headings[names:]:
        columns = [*parts[-1], key]
        gaps = _GAP * (len(columns) - 1)
        if len(columns) > names + 1 and sum(widths[k] for k in columns) + gaps > room:
            columns = [*leading, key]
            parts.append(columns)
        parts[-1] = columns
    return parts


def print_comparison(rows: Sequence[Mapping[str, str]], console: Console) -> None:
    """Print a table for each property, with a column for each run, so that it fits on a terminal.

    Args:
        rows: rows of `ldmprobe_core.analysis.compare.compare`.  The settings that differ are left
            out; notes give them with their values.
        console: console to print to.
    """
    for prop in dict.fromkeys(row["property"] for row in rows):
        runs = [row for row in rows if row["property"] == prop]
        table = _table(prop, *(row["run"] for row in runs))
        for key in runs[0]:
            if key not in ("property", "run", "differs in"):
                table.add_row(key, *(row[key] for row in runs))
        console.print(table, highlight=False)
        console.print()


def _table(*headings: str) -> Table:
    """Build a table that breaks long names into lines where the terminal is narrow."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_summary(summary: Summary, url: str, console: Console) -> None:
    """Print the results of a run.

    The output is a table of the best cell of each property, with one column per property, then
    the main numbers of each with what they say, and the address of the report.  A cell is a
    combination of a step and a layer.
    """
    from ldmprobe_core.analysis.report.text import best_rows, classes_line, unmeasured_clause

    rows = best_rows(summary)
    table = _table("", *(row["property"] for row in rows))
    for key in rows[0]:
        if key not in ("property", "at"):
            table.add_row(key, *(row[key] for row in rows))
    console.print(table, highlight=False)
    console.print()
    for row in rows:
        result = summary.properties[row["property"]]
        best = result.best
        if unmeasured_clause(result, summary.samples["test"]):
            continue  # no cell is better than another
        console.print(
            f"Best cell of {row['property']}: step {best.step}, {best.layer}, {best.kind}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if any(_last_is_higher(result) for result in summary.properties.values()):
        console.print(
            "The best cell is chosen on validation samples, so the last step can score higher on "
            "the test samples.",
            highlight=False,
        )
    for name, result in summary.properties.items():
        _print_facts(name, result, summary, console)
    if summary.classes is not None:
        console.print(f"\n{classes_line(summary.classes)}", highlight=False)
    console.print(f"\nReport: {url.rstrip('/')}/report/index.html", highlight=False, soft_wrap=True)


def _print_facts(name: str, result: PropertyRecord, summary: Summary, console: Console) -> None:
    """Print a property's main numbers, one below the other, each beside what it says."""
    from ldmprobe_core.analysis.facts import limits_of, property_facts
    from ldmprobe_core.analysis.report.text import property_title

    console.print(f"\n{property_title(name)}", style="bold", highlight=False)
    table = _table("", "")
    table.show_header = False
    table.columns[0].no_wrap = True
    for fact in property_facts(result, summary):
        table.add_row(f"{fact.value} {fact.interval}".strip(), fact.text)
    console.print(table, highlight=False)
    if limits := limits_of(name, result, summary):
        console.print(limits, highlight=False)


def _last_is_higher(result: PropertyRecord) -> bool:
    """Return whether the printed score of the last step is higher than that of the best cell."""
    best, last = result.best.score.mean, result.last.score.mean
    return best is not None and last is not None and round(last, 2) > round(best, 2)


def print_plan(plan: StudyPlan, console: Console) -> None:
    """Print the sizes of a planned study, the shapes of its layers, and its memory and storage."""
    study = plan.study
    console.print(f"{study.name}, run {study.run_name}", highlight=False)
    if not plan.samples:
        console.print(
            "its prompts or images cannot be read here: the sizes are those of "
            f"{counted(plan.count, 'sample')}",
            highlight=False,
        )
    batches = counted(-(-plan.count // study.sampling.batch), "batch")
    stored = f", {plan.n_stored} of them stored" if plan.n_stored < plan.count else ""
    console.print(
        f"{counted(plan.count, 'sample')} in {batches}{stored}, {plan.extent}", highlight=False
    )
    images = counted(plan.stored.step_images, "sample")
    untrained = ""
    if study.controls.untrained:
        weights = "permuted" if study.controls.permuted_weights else "random"
        untrained = f", {plan.stored.permuted} with a denoiser of {weights} weights"
    console.print(
        f"{images} with images of {counted(plan.stored.steps, 'step')}{untrained}", highlight=False
    )
    table = _table("layer", "height x width", "channels")
    for name, shape in plan.shapes.items():
        table.add_row(name, f"{shape.y} x {shape.x}", str(shape.channels))
    console.print(table)
    for kind, size in plan.bytes_of.items():
        each = f" ({size / plan.n_stored / 1e6:.1f} MB an image)" if kind == "activations" else ""
        console.print(f"{kind}: {size / 1e6:.1f} MB{each}", highlight=False)
    console.print(f"about {plan.bytes / 1e9:.2f} GB before compression", highlight=False)
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan.memory.items())
    console.print(
        f"memory of a worker: about {sum(plan.memory.values()) / 1e9:.2f} GB ({parts})",
        highlight=False,
    )
    for line in memory_lines(plan):
        console.print(line, highlight=False, soft_wrap=True)
    for sentence in plan.notes:
        console.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)


def print_photographs(record: Mapping[str, Any] | None, console: Console) -> None:
    """Print the class and its probability for each photograph; nothing if there are none.

    Args:
        record: JSON of a `ldmprobe_core.analysis.classes.records.PhotographsRecord`.
        console: console to print to.
    """
    if not record:
        return
    rows = [
        {
            "picture": item["name"],
            "class": item["category"],
            "probability": f"{item['probability']:.2f}",
        }
        for item in record["photographs"]
    ]
    print_rows(rows, console)
    console.print(
        f"Of {counted(record['count'], 'picture')} {record['confident']:.1%} have a top "
        "probability above 90%.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if record["known"] <= _FEW_WORDS:
        console.print(
            f"note: this classifier knows {record['known']} classes only, and assigns one of "
            "them to every image",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def print_missing(sentences: tuple[str, ...]) -> None:
    """List on standard error the packages and files that a study needs and this machine lacks."""
    errors = ResultConsole(stderr=True, emoji=False)
    for sentence in sentences:
        text = f"missing: {sentence}"
        errors.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
