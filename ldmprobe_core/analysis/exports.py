"""Export of a finished run's scores as CSV, Parquet or LaTeX."""

from __future__ import annotations

import csv
import io
import os
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np

from ldmprobe_core.analysis.controls.wording import metric_title, not_exceeded
from ldmprobe_core.analysis.records import PropertyRecord, Summary, load_summary
from ldmprobe_core.analysis.report.text import number, step
from ldmprobe_core.errors import UserError, counted
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import short_layer
from ldmprobe_core.study.readers.value_types import local_path

_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        # In text in the font encoding OT1, LaTeX's default, these are other characters.
        **{character: f"${character}$" for character in "<>|"},
    }
)

COLUMNS = ("property", "metric", "kind", "condition", "step", "layer", "mean", "samples")
"""Columns of `scores_csv`; ``samples`` is the number of samples with a defined score."""


def export_run_scores(run: Run, path: str | Path) -> None:
    """Write a finished run's scores to a local file: CSV, Parquet or LaTeX, by the file's suffix.

    Args:
        run: finished run.
        path: file to write or replace; ``~`` is the home folder.  ``.csv`` and ``.parquet`` have
            the mean score over the test samples of every cell, with one row for each property,
            metric, kind and condition (see `COLUMNS`); ``.tex`` has the table of `latex_table`.

    Raises:
        UserError: the path is an address such as ``s3://bucket/file``, the suffix is another one,
            the folder does not exist, the run is not finished, Parquet is asked for without the
            package pyarrow, or the file cannot be written; a former file then stays as it was.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path: {path!r:.60} is not a path. Fix: give the path of a file")
    target = local_path(os.fspath(path), "path")
    if target.suffix not in (".csv", ".parquet", ".tex"):
        raise UserError(
            f"path: scores cannot be exported to a file with this suffix ({target.name}). Fix: end "
            "the name with .csv, .parquet or .tex"
        )
    if not target.absolute().parent.is_dir():
        raise UserError(
            f"path: its folder does not exist ({target.parent}). Fix: create it, or name another"
        )
    summary = load_summary(run)
    if target.suffix == ".tex":
        content = latex_table(summary).encode()
    else:
        # Runs of earlier versions store scores of labels that are one constant.
        varied = [p for p, one in summary.properties.items() if one.undefined.constant is None]
        content = scores_csv(run, varied).encode()
        if target.suffix == ".parquet":
            content = _parquet(content, target.name)
    _replace_file(target, content)


def scores_csv(run: Run, properties: list[str]) -> str:
    """Return mean test scores as CSV, with one row for each layer, step and metric.

    Args:
        run: finished run.
        properties: properties to list.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    test = [i for i, sample in enumerate(run.samples) if sample.split == "test"]
    for prop in properties:
        group = f"scores/{prop}"
        names = [[str(v) for v in run.read(group, axis)] for axis in COLUMNS[1:-2]]
        values = run.read(group, "score", sample=np.isin(run.read(group, "sample"), test))
        # The stored axes begin with condition, kind, metric, but the columns of the table with
        # metric, kind, condition.
        values = values.swapaxes(0, 2)
        defined = np.isfinite(values)
        counts = defined.sum(-1)
        sums = np.where(defined, values, 0).sum(-1, dtype=np.float64)
        for index in np.argwhere(counts).tolist():
            cell = tuple(index)
            row = [labels[i] for labels, i in zip(names, cell, strict=True)]
            writer.writerow([prop, *row, f"{sums[cell] / counts[cell]:.6f}", counts[cell]])
    return text.getvalue()


def _replace_file(target: Path, content: bytes) -> None:
    """Write a file by way of a temporary one, so that it is never there in part."""
    # If the name is a symbolic link, the file that it points to is replaced, and the link stays.
    target = Path(os.path.realpath(target))
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            part.write_bytes(content)
            os.replace(part, target)
        except BaseException:  # Ctrl-C too
            with suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise UserError(
            f"path: the scores cannot be written there ({target}: {error.strerror}). Fix: check "
            "the folder's permissions and free space, or name another"
        ) from None


def _parquet(content: bytes, name: str) -> bytes:
    """Convert CSV to the bytes of a Parquet file with typed columns (text, integers, floats).

    Args:
        content: the CSV, in UTF-8.
        name: name of the file, for messages.
    """
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            f"path: Parquet needs the package pyarrow ({name}). Fix: pip install "
            "'ldmprobe[parquet]', or end the name with .csv"
        ) from None
    file = io.BytesIO()
    parquet.write_table(arrow_csv.read_csv(io.BytesIO(content)), file)
    return file.getvalue()


def latex_table(summary: Summary) -> str:
    """Return a LaTeX table (booktabs) of the best layers and steps, with one row per property.

    Scores are means over test samples with their bootstrap intervals, as in the report.
    """
    headings = (
        "Property", "Best probe", "Partial score", "Above position by", "Not clearly above",
        "Onset", "Step", "Layer",
    )  # fmt: skip
    rows = [_latex_row(name, result) for name, result in summary.properties.items()]
    lines = [" & ".join(cell.translate(_ESCAPES) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            f"% study {summary.study_hash}, model {summary.model_fingerprint}: "
            f"{counted(summary.samples['test'], 'test sample')}, {counted(summary.steps, 'step')}",
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{'l' * len(headings)}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_row(name: str, result: PropertyRecord) -> list[str]:
    """Format the LaTeX table row of one property."""
    best = result.best
    return [
        f"{name} ({metric_title(best.metric)})",
        number(best.score),
        number(best.partial),
        number(result.controls.position.difference),
        not_exceeded(result),
        step(result.emergence.probe.relative.onset),
        str(best.step),
        short_layer(best.layer),
    ]
