"""Progress of a fan-out: a bar in the terminal, an artifact in the Prefect UI."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.futures import PrefectFuture, as_completed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldmprobe_core.errors import RunError, UserError

_UPDATE_EVERY_S = 2.0


class StageError(RunError):
    """Some units of a stage failed; the others are done and stay done."""


def follow(stage: str, units: Mapping[str, PrefectFuture[Any]]) -> float:
    """Wait for every unit of a stage.

    Args:
        units: name of each unit to its future.

    Returns:
        seconds it took.

    Raises:
        UserError: a unit failed by a mistake that the user can mend.
        StageError: some failed otherwise; the message names the first and counts the rest.
    """
    started = shown = time.monotonic()
    artifact = create_progress_artifact(progress=0.0, key=f"progress-{stage}", description=stage)
    assert isinstance(artifact, UUID), "this flow is synchronous"
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    failed: list[tuple[str, BaseException]] = []
    with Progress(*columns) as bar:
        line = bar.add_task(stage, total=len(units))
        names = {future: name for name, future in units.items()}
        for done, future in enumerate(as_completed(list(names)), start=1):
            result = future.result(raise_on_failure=False)
            if isinstance(result, BaseException):
                failed.append((names[future], result))
            bar.advance(line)
            now = time.monotonic()
            if now - shown > _UPDATE_EVERY_S or done == len(units):
                shown = now
                left = (now - started) / done * (len(units) - done)
                update_progress_artifact(
                    artifact_id=artifact,
                    progress=100.0 * done / len(units),
                    description=f"{stage}: {done} of {len(units)}, {left:.0f} s left",
                )
    if failed:
        mistakes = [error for _, error in failed if isinstance(error, UserError)]
        if mistakes:
            raise UserError(str(mistakes[0]))
        name, error = failed[0]
        raise StageError(
            f"{len(failed)} of {len(units)} units of {stage} failed, the first being "
            f"{name}, {type(error).__name__}: {error}; run the study again to redo just these"
        )
    return time.monotonic() - started
