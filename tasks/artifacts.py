"""The summary as Prefect artifacts, so that the UI shows results and their history."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from ldmprobe_core.report.text import best_rows, headline


def publish(summary: dict, url: str) -> None:
    """A table of the best cells and a short text; keys are stable over scheduled runs."""
    name = summary["study"]
    create_table_artifact(
        table=best_rows(summary),
        key=f"best-cells-{name}",
        description=f"Best cell of each property, run {summary['study_hash']}",
    )
    lines = [f"# {name}", "", *(f"- {line}" for line in headline(summary))]
    lines += ["", f"Full report: `{url}/report/index.html`"]
    create_markdown_artifact(
        markdown="\n".join(lines), key=f"summary-{name}", description="What the run found"
    )
