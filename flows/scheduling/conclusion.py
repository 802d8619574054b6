"""Work that follows a finished scheduled run: deletion of old runs.

A failure of it is logged and shown among the artifacts, and does not fail the study.
"""

from __future__ import annotations

from collections.abc import Callable

from prefect.logging import get_run_logger

from flows.scheduling.settings import Schedule
from tasks.artifacts import publish_retention
from tasks.display import activity
from tasks.references import RunRef
from tasks.study import prune_scheduled_runs


def conclude(run: RunRef, study: str, schedule: Schedule) -> None:
    """Delete old scheduled runs of a study as the schedule says.

    Call this function when the run's lease is released, because no run is touched on which a flow
    works.

    Args:
        run: the run that has just been finished.
        study: name of the study.
        schedule: settings of the scheduled runs.
    """
    if schedule.keep is not None or schedule.keep_activations is not None:
        with activity("deleting old scheduled runs"):
            _attempt("retention", lambda: _apply_retention(run, study, schedule))


def _attempt(what: str, work: Callable[[], None]) -> None:
    """Call a function; if it fails, log a warning instead of failing the flow run."""
    try:
        work()
    except Exception as error:
        get_run_logger().warning(
            "%s failed, and the study is complete: %s: %s", what, type(error).__name__, error
        )


def _apply_retention(run: RunRef, study: str, schedule: Schedule) -> None:
    """Delete old scheduled runs, and publish what was done, or why nothing was."""
    try:
        actions = prune_scheduled_runs(run, study, schedule.keep, schedule.keep_activations)
    except Exception as error:
        publish_retention(study, [], f"{type(error).__name__}: {error}")
        raise
    for item in actions:
        name, reason = item.url.rpartition("/")[2], f" ({item.reason})" if item.reason else ""
        get_run_logger().info("retention: %s: %s%s", name, item.action, reason)
    publish_retention(study, actions)
