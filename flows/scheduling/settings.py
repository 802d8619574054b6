"""Settings of scheduled runs, which are a parameter of the study flow, and the study of a date."""

from __future__ import annotations

from datetime import UTC, date
from typing import Annotated, Any

from prefect import runtime
from prefect.logging import get_run_logger
from pydantic import Field

from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.pipeline.prepare import code_digest
from ldmprobe_core.storage.lifecycle.schedule_record import (
    ScheduleRecord,
    read_schedule_record,
    write_schedule_record,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.readers.value_types import Section
from ldmprobe_core.study.schema import Study
from tasks.references import RunRef


class Schedule(Section):
    """Settings of the scheduled runs of a study.

    A flow run with these settings carries out the study with the seeds of its scheduled date (see
    `ldmprobe_core.pipeline.planning.rolling_seed`).

    Attributes:
        keep: number of finished scheduled runs of the study to keep in the store; None keeps all.
        keep_activations: number of these runs whose activations to keep; None keeps all.
    """

    keep: Annotated[int, Field(ge=1, le=100_000)] | None = None
    keep_activations: Annotated[int, Field(ge=0, le=100_000)] | None = None


def scheduled_date() -> date:
    """Return the date in UTC for which the current flow run is scheduled.

    A flow run keeps this date when it is late, is retried, or continues after a crash.  A flow run
    that is started by hand is scheduled for the time at which it was created.
    """
    return runtime.flow_run.scheduled_start_time.astimezone(UTC).date()


def summary_if_finished(run: RunRef, study: Study) -> dict[str, Any] | None:
    """Record the scheduled date in a run, and return the summary if the run is finished.

    A finished run is not summarised again, because retention may have deleted its activations,
    which would all be generated again.

    Args:
        run: run of the current flow run.
        study: study of the run, with the seeds of the scheduled date.

    Returns:
        the summary as JSON; None if the run is not finished.
    """
    stored, day, logger = Run(run.url), scheduled_date(), get_run_logger()
    logger.info("scheduled for %s: prompts.seed is %d", day, study.prompts.seed)
    if not stored.location.has("summary.json"):
        record = ScheduleRecord(scheduled_for=day, code=code_digest())
        write_schedule_record(stored.location, record)
        return None
    if read_schedule_record(stored.location) is None:
        write_schedule_record(stored.location, ScheduleRecord(scheduled_for=day))
    logger.info("%s is finished already", run.url)
    return load_summary(stored).model_dump(mode="json", by_alias=True)
