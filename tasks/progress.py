"""Progress of a fan-out: a bar in the terminal, an artifact in the Prefect UI."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.checksum_store import CorruptChunkError

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
        DamageError: a unit met data that is not what was written.
        UserError: a unit failed by a mistake that the user can mend.
        StageError: some failed otherwise; the message names the first and counts the rest.
    """
    started = shown = time.monotonic()
    artifact = _ProgressArtifact(stage)
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    failed: list[tuple[str, BaseException]] = []
    with Progress(*columns) as bar:
        line = bar.add_task(stage, total=len(units), pace="")
        names = {future: name for name, future in units.items()}
        for done, future in enumerate(as_completed(list(names)), start=1):
            result = future.result(raise_on_failure=False)
            if isinstance(result, BaseException):
                failed.append((names[future], result))
            now = time.monotonic()
            bar.update(line, advance=1, pace=_pace(done / (now - started)))
            if now - shown > _UPDATE_EVERY_S or done == len(units):
                shown = now
                artifact.show(done, len(units), now - started)
    if failed:
        for name, error in failed:
            get_run_logger().error("%s failed: %s: %s", name, type(error).__name__, error)
        for kind in (CorruptChunkError, UserError):  # these say themselves what is to be done
            for _, error in failed:
                if isinstance(error, kind):
                    raise error
        name, error = failed[0]
        raise StageError(
            f"{len(failed)} of {len(units)} units of {stage} failed, the first being "
            f"{name}, {type(error).__name__}: {error}; run the study again to redo just these"
        )
    return time.monotonic() - started


class _ProgressArtifact:
    """A stage's progress in the UI.  Showing is not the work: a server that is away stops nothing.

    It is created when the first unit ends, and again if the server did not answer before.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.id: UUID | None = None

    def show(self, done: int, count: int, seconds: float) -> None:
        rate, left = done / seconds, seconds / done * (count - done)
        text = f"{self.stage}: {done} of {count}, {_pace(rate)}, {_duration(left)} left"
        progress = 100.0 * done / count
        try:
            if self.id is None:
                made = create_progress_artifact(
                    progress=progress, key=f"progress-{self.stage}", description=text
                )
                assert isinstance(made, UUID), "this flow is synchronous"
                self.id = made
            else:
                update_progress_artifact(self.id, description=text, progress=progress)
        except (PrefectException, httpx.HTTPError) as error:
            get_run_logger().warning("progress is not shown: %s", error)


def _pace(rate: float) -> str:
    return f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"
