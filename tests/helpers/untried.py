"""Lines at the end of a test run that name what it did not try, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

LEFT_OUT = pytest.StashKey[list[str]]()
"""Addresses of the slow tests that a process of pytest-xdist left out."""


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


def left_out(addresses: list[str]) -> str:
    """Return the line for slow tests that were left out, with their number in each folder.

    Args:
        addresses: their node ids, such as ``tests/flows/test_plugin.py::test_name``; at least one.
    """
    folders = Counter("/".join(address.split("/")[:2]).partition("::")[0] for address in addresses)
    places = ", ".join(f"{folder} ({number})" for folder, number in sorted(folders.items()))
    many = "s" * (len(addresses) > 1)
    return f"not tried: {len(addresses)} slow test{many} in {places}: make test-slow runs them"


def slow(items: Iterable[pytest.Item]) -> list[str]:
    """Return the node ids of the tests that are marked slow."""
    return [item.nodeid for item in items if item.get_closest_marker("slow")]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist, note the slow tests left out for the one that reports them."""
    if items and hasattr(items[0].config, "workeroutput"):
        items[0].config.workeroutput.setdefault("left_out", []).extend(slow(items))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process of pytest-xdist left out; all of them leave out the same tests."""
    output = getattr(node, "workeroutput", {})  # a process that died has none
    node.config.stash[LEFT_OUT] = output.get("left_out") or node.config.stash.get(LEFT_OUT, [])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the lines after the summary of a test run."""
    for line in untried(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)
    here = slow(terminalreporter.stats.get("deselected", []))
    if addresses := here or terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(left_out(addresses))
