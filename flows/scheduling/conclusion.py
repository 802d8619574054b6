"""Work that follows a finished scheduled run: its history, deletion of old runs, the index.

A failure of it is logged and shown among the artifacts, and does not fail the study.
"""

from __future__ import annotations

from collections.abc import Callable

from prefect.logging import get_run_logger

from flows.scheduling.settings import Schedule
from ldmprobe_core.analysis.index.build import write_index
from ldmprobe_core.analysis.index.history import update_history
from tasks.artifacts import publish_history, publish_retention
from tasks.display import activity
from tasks.failures import describe_failure
from tasks.references import RunRef
from tasks.study import prune_scheduled_runs


def conclude(run: RunRef, study: str, schedule: Schedule) -> None:
    """Record a scheduled run in its study's history, and delete old runs as the schedule says.

    If the history cannot be written, nothing is deleted, so that no result is lost.  Call this
    function when the run's lease is released, because no run is touched on which a flow works.

    Args:
        run: the run that has just been finished.
        study: name of the study.
        schedule: settings of the scheduled runs.
    """
    store = run.url.rpartition("/")[0]
    with activity("history of the scheduled runs"):
        recorded = _attempt("history", lambda: publish_history(study, update_history(store, study)))
    if schedule.keep is not None or schedule.keep_activations is not None:
        with activity("deleting old scheduled runs"):
            if recorded:
                _attempt("retention", lambda: _apply_retention(run, study, schedule))
            else:
                problem = "the history was not written, so nothing is deleted"
                _attempt("retention", lambda: publish_retention(study, [], problem))
    with activity("index of the store"):
        _attempt("index", lambda: write_index(store))


def _attempt(what: str, work: Callable[[], object]) -> bool:
    """Call a function, and return whether it succeeded; a failure is logged, and not raised."""
    try:
        work()
    except Exception as error:
        reason = describe_failure(error)
        get_run_logger().warning("%s failed, and the study is complete: %s", what, reason)
        return False
    return True


def _apply_retention(run: RunRef, study: str, schedule: Schedule) -> None:
    """Delete old scheduled runs, and publish what was done, or why nothing was."""
    try:
        actions = prune_scheduled_runs(run, study, schedule.keep, schedule.keep_activations)
    except Exception as error:
        publish_retention(study, [], describe_failure(error))
        raise
    for item in actions:
        name, reason = item.url.rpartition("/")[2], f" ({item.reason})" if item.reason else ""
        get_run_logger().info("retention: %s: %s%s", name, item.action, reason)
    publish_retention(study, actions)
