"""Record of a scheduled run: the file ``schedule.json``, which only runs of a schedule have."""

from __future__ import annotations

from datetime import date

from pydantic import BaseModel, ConfigDict

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.filesystem import Location

SCHEDULE_FILE = "schedule.json"


class ScheduleRecord(BaseModel):
    """Contents of ``schedule.json``.

    Attributes:
        scheduled_for: date in UTC for which the run was scheduled; its seeds follow from it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    scheduled_for: date


def write_schedule_record(run: Location, scheduled_for: date) -> None:
    """Write the date for which a run was scheduled to the run's ``schedule.json``."""
    run.write_text(SCHEDULE_FILE, ScheduleRecord(scheduled_for=scheduled_for).model_dump_json())


def read_schedule_record(run: Location) -> ScheduleRecord | None:
    """Read the date for which a run was scheduled; None if no schedule started it.

    A damaged record counts as none, so that retention leaves such a run alone.
    """
    if not run.has(SCHEDULE_FILE):
        return None
    try:
        return run.read_record(SCHEDULE_FILE, ScheduleRecord, "remove the file")
    except RunError:
        return None
