"""Settings of scheduled runs, which are a parameter of the study flow, and the study of a date."""

from __future__ import annotations

from datetime import UTC, date
from typing import Annotated

from prefect import runtime
from pydantic import Field

from ldmprobe_core.study.readers.value_types import Section


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
