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
    """Failure of some units of a stage; the other units are complete and recorded."""


def follow(stage: str, units: Mapping[str, PrefectFuture[Any]]) -> float:
    """Wait for every unit of a stage, and show progress.

    Args:
        units: name of each unit to its future.

    Returns:
        seconds until the last unit ended.

    Raises:
        CorruptChunkError: a unit read corrupt data.
        UserError: a unit failed because of a mistake that the user can correct.
        StageError: units failed for other reasons; the message has their number and the first.
    """
    started = updated = time.monotonic()
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
            if now - updated > _UPDATE_EVERY_S or done == len(units):
                updated = now
                artifact.show(done, len(units), now - started)
    if failed:
        for name, error in failed:
            get_run_logger().error("%s failed: %s: %s", name, type(error).__name__, error)
        for kind in (CorruptChunkError, UserError):  # their messages contain the remedy
            for _, error in failed:
                if isinstance(error, kind):
                    raise error
        name, error = failed[0]
        raise StageError(
            f"{len(failed)} of {len(units)} units of {stage} failed, the first being "
            f"{name}, {type(error).__name__}: {error}. Fix: run the study again, which repeats "
            "only these"
        )
    return time.monotonic() - started


class _ProgressArtifact:
    """Progress of a stage in the UI; failures to update it are logged and ignored.

    It is created when the first unit ends, and again if the server did not answer before.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.id: UUID | None = None

    def show(self, done: int, count: int, seconds: float) -> None:
        rate, remaining = done / seconds, seconds / done * (count - done)
        text = f"{self.stage}: {done} of {count}, {_pace(rate)}, {_duration(remaining)} left"
        progress = 100.0 * done / count
        try:
            if self.id is None:
                artifact_id = create_progress_artifact(
                    progress=progress, key=f"progress-{self.stage}", description=text
                )
                if not isinstance(artifact_id, UUID):
                    raise TypeError("progress is shown by synchronous flows")
                self.id = artifact_id
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
