"""A scheduled study, its run on one date, and flow runs that are scheduled for a date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Scheduled
from run_helpers import carry_out, small_study

from flows.study import study_flow
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.schema import Study


@pytest.fixture(scope="session")
def nightly_study(tiny_model) -> dict[str, Any]:
    return small_study("nightly", tiny_model, 8).model_dump(mode="json", by_alias=True)


@pytest.fixture(scope="session")
def study_of_march_1(nightly_study) -> Study:
    """The study with the seeds that it has on 2026-03-01."""
    # 56 years from 1970 on, of which 14 are leap years (1972 to 2024), then January and February.
    seed = (56 * 365 + 14 + 31 + 28) * 100_000
    content = nightly_study | {"prompts": nightly_study["prompts"] | {"seed": seed}}
    return parse_study(content)


@pytest.fixture(scope="session")
def run_of_march_1(study_of_march_1, tmp_path_factory):
    """All units of the study of 2026-03-01, by a plain loop, without a summary."""
    return carry_out(study_of_march_1, str(tmp_path_factory.mktemp("plain")))


@pytest.fixture
def mark_as_scheduled(monkeypatch) -> Callable[[bool], None]:
    """Set whether flow runs read from Prefect have the mark of a schedule.

    On a server, Prefect's scheduler alone sets this mark.
    """
    read = SyncPrefectClient.read_flow_run

    def mark(by_schedule: bool) -> None:
        def read_marked(client: SyncPrefectClient, flow_run_id: UUID) -> FlowRun:
            found = read(client, flow_run_id)
            return found.model_copy(update={"auto_scheduled": by_schedule})

        monkeypatch.setattr(SyncPrefectClient, "read_flow_run", read_marked)

    return mark


@pytest.fixture
def scheduled(prefect_api, mark_as_scheduled) -> Callable[..., FlowRun]:
    """Carry out a flow run that a schedule starts at a time, or repeat it."""
    mark_as_scheduled(True)

    def carry_out_at(
        time: datetime,
        parameters: dict[str, Any],
        again: FlowRun | None = None,
        flow: Flow[..., Any] = study_flow,
    ) -> FlowRun:
        with get_client(sync_client=True) as client:
            if again is None:
                state = Scheduled(scheduled_time=time)
                again = client.create_flow_run(flow, parameters=parameters, state=state)
            else:
                client.set_flow_run_state(again.id, AwaitingRetry(), force=True)
                again = client.read_flow_run(again.id)
            run_flow(flow, again, parameters, return_type="state")
            return client.read_flow_run(again.id)

    return carry_out_at
