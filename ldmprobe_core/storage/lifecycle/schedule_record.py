"""Record ``schedule.json`` of a run that a schedule started; other runs do not have this file."""

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
        code: digest of this package's source files, on the machine of the flow that worked on the
            run last; None if the run was finished before a schedule started it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    scheduled_for: date
    code: str | None = None


def write_schedule_record(run: Location, record: ScheduleRecord) -> None:
    """Write the record ``schedule.json`` of a run: its scheduled date and its code's digest."""
    run.write_text(SCHEDULE_FILE, record.model_dump_json())


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
