"""Trial of stops in Prefect, run in a container: ``python -m infra.containers.stopping STUDY``.

The argument is a study as JSON.  A flow run of its deployment is cancelled through Prefect's API
after the first batches, as Prefect's UI does.  A second flow run of the same study is suspended,
which is what the pause button of the UI does, and resumed.  No complete batch may be repeated.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
from distributed import Client
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Suspended

from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.schema import Study
from tasks.failures import executing_keys

LIMIT_S = 900.0
"""Longest time in seconds to wait for a batch or for the end of a flow run."""

_LOOK_EVERY_S = 0.2


class StopError(Exception):
    """Error of a stop that does not do what it says; the message names it."""


class Stopping:
    """Flow runs of a study's deployment that are stopped through Prefect's API.

    Args:
        client: client of the Prefect server.
        dask: client of the Dask scheduler whose workers carry out the study.
        study: study with many batches, so that it is not complete when it is stopped.
        store: URL of the folder that contains runs.
    """

    def __init__(self, client: SyncPrefectClient, dask: Client, study: Study, store: str) -> None:
        self._client, self._dask, self._study, self._store = client, dask, study, store
        self._run = Run(f"{store.rstrip('/')}/{study.run_name}")
        self._written: dict[int, datetime] = {}

    def start(self) -> UUID:
        """Start a flow run of the deployment ``study/process``, and return its id."""
        deployment = self._client.read_deployment_by_name("study/process")
        content = self._study.model_dump(mode="json", by_alias=True)
        parameters = {"study": content, "store": self._store}
        return self._client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def generated(self) -> int:
        """Return the number of batches that are complete."""
        return int(self._run.progress.completed("generated").sum()) if self._run.exists else 0

    def stop(self, flow_run_id: UUID, state: State[Any], end: str) -> str:
        """Set the state of a flow run after a further batch, and wait until it has stopped.

        Args:
            flow_run_id: flow run to stop.
            state: state that the user requests.
            end: name of the state in which the flow run has to end.

        Returns:
            a sentence with the number of batches and the time that the stop took.

        Raises:
            StopError: the flow run does not stop, is complete, leaves units or a lease behind, or
                repeats batches that were complete at an earlier stop.
        """
        before = self.generated()
        wait(f"a batch of flow run {flow_run_id}", lambda: self.generated() > before)
        before, since = self.generated(), time.monotonic()
        self._client.set_flow_run_state(flow_run_id, state)
        lease = Location(f"{self._run.url}.lease")
        wait("the release of the lease", lambda: not lease.files())
        freed = time.monotonic() - since
        if at_work := [key for keys in self._dask.run(executing_keys).values() for key in keys]:
            raise StopError(f"{end}: units run after the lease was freed: {at_work}")
        wait(f"the state {end}", lambda: self.state(flow_run_id) == end)
        ended, total = time.monotonic() - since, len(self._run.progress.completed("generated"))
        after = self.generated()
        if after == total or self._run.location.has("summary.json"):
            raise StopError(f"{end}: the run was complete, {after} of {total} batches")
        self._require_kept()
        return (
            f"{end} after {before} of {total} batches: {after - before} more ended, lease freed "
            f"after {freed:.1f} s, state recorded after {ended:.1f} s"
        )

    def state(self, flow_run_id: UUID) -> str:
        """Return the name of the state of a flow run."""
        state = self._client.read_flow_run(flow_run_id).state
        return str(state.name) if state is not None else ""

    def resume(self, flow_run_id: UUID) -> None:
        """Resume a suspended flow run, and wait until it is complete.

        Raises:
            StopError: it ends in another state, or repeats batches that were complete.
        """
        self._client.resume_flow_run(flow_run_id)
        ends = ("Completed", "Failed", "Crashed", "Cancelled")
        wait("the end of the resumed flow run", lambda: self.state(flow_run_id) in ends)
        if self.state(flow_run_id) != "Completed":
            raise StopError(f"the resumed flow run is {self.state(flow_run_id)}")
        self._require_kept()

    def _require_kept(self) -> None:
        """Check that no batch that was complete at an earlier stop was written again.

        Raises:
            StopError: the images of such a batch have another modification time.
        """
        now = {
            int(batch): self._run.location.modified(f"images/image/c/{batch}/0/0/0")
            for batch in np.flatnonzero(self._run.progress.completed("generated"))
        }
        if again := [
            batch for batch, written in self._written.items() if now.get(batch) != written
        ]:
            raise StopError(f"batches {again} were complete, and were repeated or lost")
        self._written = now


def wait(aim: str, reached: Callable[[], bool]) -> None:
    """Wait until ``reached`` returns True.

    Raises:
        StopError: it does not within `LIMIT_S` seconds.
    """
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        if time.monotonic() > deadline:
            raise StopError(f"gave up after {LIMIT_S:.0f} s of waiting for {aim}")
        # Nothing announces the change that is waited for, so look again until the deadline.
        time.sleep(_LOOK_EVERY_S)


def main() -> None:
    """Cancel, suspend and resume a study, print how long that took, and exit with 1 on failure."""
    study = Study.model_validate_json(sys.argv[1])
    prefect: AbstractContextManager[SyncPrefectClient] = get_client(sync_client=True)
    with prefect as client, Client(study.execution.address, set_as_default=False) as dask:
        stopping = Stopping(client, dask, study, os.environ["LDMPROBE_STORE"])
        try:
            print(stopping.stop(stopping.start(), Cancelling(), "Cancelled"), flush=True)
            suspended = stopping.start()
            suspension: State[Any] = Suspended(timeout_seconds=int(LIMIT_S))
            print(stopping.stop(suspended, suspension, "Suspended"), flush=True)
            stopping.resume(suspended)
        except StopError as error:
            print(f"stopping: {error}", file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
