"""Settings of scheduled runs, which are a parameter of their flow, and the study of a date."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from prefect.context import FlowRunContext
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


class RollingSeed(Section):
    """Settings of scheduled flow runs that have the seeds of their date.

    They are parameters of the deployment, and not of its schedule, because Prefect 3.9 drops the
    parameters of a schedule when it is switched on.  They apply to flow runs that a schedule
    started, or whose settings name a date; other flow runs carry out the study as it is.

    Attributes:
        date: date of which a flow run has the seeds, to make up for one that was missed; None takes
            the date in UTC for which a schedule started the flow run.
        wait_minutes: longest time to wait for another flow run that works on the run of the date,
            such as the classify flow of the same night.
    """

    date: Annotated[datetime.date, Field(strict=False)] | None = None
    wait_minutes: Annotated[int, Field(ge=0, le=1440)] = 360


class Schedule(RollingSeed):
    """Settings of the scheduled runs of a study: rolling seed and retention.

    Attributes:
        keep: number of finished scheduled runs of the study to keep in the store; None keeps all.
        keep_activations: number of these runs whose activations to keep; None keeps all.
    """

    keep: Annotated[int, Field(ge=1, le=100_000)] | None = None
    keep_activations: Annotated[int, Field(ge=0, le=100_000)] | None = None


def wait_of(schedule: RollingSeed | None, day: datetime.date | None) -> int | None:
    """Return the minutes for which a flow run waits for another one that works on its run.

    Args:
        schedule: settings of scheduled runs; None if the flow run has none.
        day: date of which the flow run has the seeds.

    Returns:
        minutes; None if the flow run was started by hand, whose user learns at once that the run
        is held.
    """
    return None if schedule is None or day is None else schedule.wait_minutes


def scheduled_date(schedule: RollingSeed | None) -> datetime.date | None:
    """Return the date of which the current flow run has the seeds.

    A flow run keeps this date when it is late, is retried, or continues after a crash.

    Args:
        schedule: settings of scheduled runs; None if the flow run has none.

    Returns:
        the date (see `ldmprobe_core.pipeline.planning.rolling_seed`); None if the study is carried
        out as it is, because the flow run was started by hand and its settings name no date.
    """
    context = FlowRunContext.get()
    flow_run = context.flow_run if context is not None else None
    if schedule is None or schedule.date is not None or flow_run is None:
        return schedule.date if schedule is not None else None
    if not flow_run.auto_scheduled or flow_run.expected_start_time is None:
        get_run_logger().info("schedule is not used: this flow run was started by hand")
        return None
    return flow_run.expected_start_time.astimezone(datetime.UTC).date()


def summary_if_finished(run: RunRef, study: Study, day: datetime.date) -> dict[str, Any] | None:
    """Record the scheduled date in a run, and return the summary if the run is finished.

    A finished run is not summarised again, because retention may have deleted its activations,
    which would all be generated again.

    Args:
        run: run of the current flow run.
        study: study of the run, with the seeds of the scheduled date.
        day: scheduled date.

    Returns:
        the summary as JSON; None if the run is not finished.
    """
    stored, logger = Run(run.url), get_run_logger()
    logger.info("scheduled for %s: prompts.seed is %d", day, study.prompts.seed)
    if not stored.location.has("summary.json"):
        record = ScheduleRecord(scheduled_for=day, code=code_digest())
        write_schedule_record(stored.location, record)
        return None
    if read_schedule_record(stored.location) is None:
        write_schedule_record(stored.location, ScheduleRecord(scheduled_for=day))
    logger.info("%s is finished already", run.url)
    return load_summary(stored).model_dump(mode="json", by_alias=True)
