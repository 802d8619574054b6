"""Waiting for all units of a stage, with a display of progress in terminal and Prefect UI.

A stage is a step of a flow, such as generation, that submits many units of work at once.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from ldmprobe_core.errors import RunError, UserError, without_logins
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from tasks.display import Activity, activity, duration, print_line, refresh
from tasks.failures import cancel_waiting, describe_failure, failure_and_remedy, outcome
from tasks.stopping import PausedError, StoppedError, is_paused, requested_stop, require_not_stopped
from tasks.time_left import TimeLeft, UnitCost

_UPDATE_EVERY_S = 2.0
_LOOK_EVERY_S = 0.3

_NO_FAILURES = (CorruptChunkError, StoppedError, PausedError)
"""Errors of units that the flow repairs, or that it ends after a request to stop or to pause."""


class StageMeasures(NamedTuple):
    """Measures of a finished stage.

    Attributes:
        seconds: time from its begin to the end of its last unit.
        peak: largest memory in bytes that a process had used after one of its units, by the names
            of `peak_memory`; empty if no unit was carried out.
    """

    seconds: float
    peak: dict[str, int]


class StageError(RunError):
    """Error of a stage in which some units failed; its other units are complete and recorded."""


def follow(
    stage: str, units: Mapping[str, PrefectFuture[Any]], left: TimeLeft | None = None
) -> StageMeasures:
    """Wait for all units of a stage to end, and show progress.

    If a stop or a pause is requested, this function cancels the units that have not started, and
    waits for those in progress.

    Args:
        stage: name of the stage, for display.
        units: future of each unit by the unit's name.
        left: estimate of the time left, which also knows the other stages of the flow; None
            estimates the time of this stage alone.

    Returns:
        seconds until the last unit ended, and the largest peak memory of a worker.

    Raises:
        StoppedError: a stop was requested.
        PausedError: a pause was requested; units that were cancelled have to be submitted again.
        CorruptChunkError: a unit read corrupt data.
        UserError: a unit failed because of a mistake that the user can correct.
        StageError: units failed for other reasons; the message gives the number of failed units
            and describes the first failure.
    """
    started = updated = time.monotonic()
    artifact = _ProgressArtifact(stage)
    failed: list[tuple[str, BaseException]] = []
    peaks: dict[str, int] = {}
    left = left or TimeLeft({stage: dict.fromkeys(units, UnitCost(1.0))}, started=started)
    names, ended = {future: name for name, future in units.items()}, 0
    with activity(stage, len(units)) as shown:
        for future in _ended(list(names)):
            if future is not None:
                result = outcome(future)
                if isinstance(result, BaseException):
                    failed.append((names[future], result))
                    _tell_first(stage, failed)
                measured = result if isinstance(result, dict) else {}
                seconds = measured.get("seconds", 0.0)
                peaks = largest_peaks(peaks, measured.get("peak", {}))
                left.record(stage, names[future], seconds, time.monotonic())
                ended += 1
                shown.done = ended - len(failed)
            shown.note = _note(stage, left, len(failed))
            refresh(shown)
            if future and (time.monotonic() - updated > _UPDATE_EVERY_S or ended == len(units)):
                updated = time.monotonic()
                artifact.show(shown)
    require_not_stopped()
    # Fewer ended units than submitted ones mean that some were cancelled for a pause, which may be
    # over by now.
    if is_paused() or ended < len(units):
        raise PausedError(f"{stage}: paused after {ended} of {len(units)} units")
    if failed:
        _raise_failure(stage, len(units), failed)
    taken = time.monotonic() - started
    print_line(f"{stage}: {len(units)} of {len(units)} in {duration(taken)}")
    return StageMeasures(taken, peaks)


def _tell_first(stage: str, failed: list[tuple[str, BaseException]]) -> None:
    """Print the first failure of a stage, among those that neither a repair nor a stop explains."""
    told = [one for one in failed if not isinstance(one[1], _NO_FAILURES)]
    if len(told) == 1 and told[0] is failed[-1]:
        name, error = told[0]
        print_line(f"{stage}: {name} failed, {describe_failure(error)}")


def largest_peaks(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the larger number of bytes of two, by name of the memory."""
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def _note(stage: str, left: TimeLeft, failed: int) -> str:
    """Return the number of failed units and the time left, in words."""
    return (f"{failed} failed, " if failed else "") + _time_note(stage, left)


def _time_note(stage: str, left: TimeLeft) -> str:
    """Return the time left of a stage and of the flow, in words."""
    if requested_stop() is not None:
        return "stopping: waiting for the units in progress"
    if is_paused():
        return "paused in Prefect: waiting for the units in progress"
    now = time.monotonic()
    of_stage, of_flow = left.of_stage(stage, now), left.of_flow(now)
    if of_stage is None or of_flow is None:
        return "the first units load the models"
    total = f", {duration(of_flow)} in all" if of_flow - of_stage >= 1 else ""
    return f"{duration(of_stage)} left{total}"


def _ended(futures: list[PrefectFuture[Any]]) -> Iterator[PrefectFuture[Any] | None]:
    """Yield futures in the order in which they end, until all have ended, and None in between.

    After a request to stop or to pause, the function cancels the units that have not started, waits
    for the rest without yielding them, and returns.  If a request to stop does not wait for units,
    it returns at once.
    """
    ends: queue.Queue[PrefectFuture[Any]] = queue.Queue()
    for future in futures:
        future.add_done_callback(ends.put)
    remaining, stopping = len(futures), False
    while remaining:
        stop = requested_stop()
        if stop is not None and not stop.waits:
            return
        if not stopping and (stop is not None or is_paused()):
            cancel_waiting(futures)
            stopping = True
        try:
            future = ends.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            yield None
            continue
        remaining -= 1
        if not stopping:
            yield future


def _raise_failure(stage: str, count: int, failed: list[tuple[str, BaseException]]) -> NoReturn:
    """Log every failure of a stage, and raise an error for the most informative one."""
    for name, error in failed:
        get_run_logger().error("%s failed: %s", name, describe_failure(error))
    # `CorruptChunkError` and `UserError` already tell the user what to do, so raise them unchanged.
    for kind in (CorruptChunkError, UserError):
        for _, error in failed:
            if isinstance(error, kind):
                raise error
    name, error = failed[0]
    raise StageError(
        f"{len(failed)} of {count} units of {stage} failed, the first being {name}, "
        f"{failure_and_remedy(error)}"
    )


class _ProgressArtifact:
    """Prefect artifact that shows the progress of a stage in Prefect's UI.

    The artifact is created at the first call of `show`, or at a later call if the server did not
    answer.  Failures to create or update it are logged and otherwise ignored.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.id: UUID | None = None

    def show(self, shown: Activity) -> None:
        """Create or update the artifact with the state of an activity."""
        text, progress = shown.line(), 100.0 * shown.done / (shown.total or 1)
        try:
            if self.id is None:
                artifact_id = create_progress_artifact(
                    progress=progress, key=f"progress-{self.stage}", description=text
                )
                if not isinstance(artifact_id, UUID):
                    raise TypeError(
                        "progress artifact: Prefect returned no id, as in an asynchronous flow. "
                        "Fix: call the stage from a synchronous flow."
                    )
                self.id = artifact_id
            else:
                update_progress_artifact(self.id, description=text, progress=progress)
        except (PrefectException, httpx.HTTPError) as error:
            reason = without_logins(str(error))
            get_run_logger().warning("progress is not shown: %s", reason)
