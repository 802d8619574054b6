"""Lines at the end of a test run that name what this machine could not try, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def untried(reports: Iterable[Any]) -> list[str]:
    """Return a line for each reason of skipped tests, with their number and files.

    Args:
        reports: pytest's reports of skipped tests, and of modules that were skipped as a whole.
    """
    files: dict[str, list[str]] = {}
    for report in reports:
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        files.setdefault(reason, []).append(report.nodeid.partition("::")[0])
    return [
        f"not tried: {len(names)} test{'s' * (len(names) > 1)} in "
        f"{', '.join(sorted(set(names)))}: {reason}"
        for reason, names in sorted(files.items())
    ]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the lines after the summary of a test run."""
    for line in untried(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)
