"""Set up a platform whose servers are running: ``python -m infra.setup``.

This creates the bucket in the object store, and the work pool, the deployments and an automation on
the Prefect server.  Environment variables name the servers (PREFECT_API_URL, AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, ...).  It is safe to repeat the setup.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import s3fs

from flows.pause_watch import SUSPENSION_EVENT
from ldmprobe_core.errors import without_logins

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
_LIMIT_S = 60.0
_SILENCE = timedelta(seconds=600)
"""Duration without a heartbeat after which a flow run counts as crashed.

A flow run sends a heartbeat every 180 seconds (PREFECT_FLOWS_HEARTBEAT_FREQUENCY).
"""


class SetupError(Exception):
    """Error of a failed step of the setup; the message says which one."""


def main() -> None:
    """Create the bucket, deployments and automation, and exit with 1 if a step fails."""
    try:
        make_bucket()
        deploy()
        watch_over_flow_runs()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def make_bucket() -> None:
    """Create the bucket that LDMPROBE_STORE names, and check that it is writable.

    Raises:
        SetupError: LDMPROBE_STORE is not set, or the bucket is not writable within a minute.
    """
    bucket = _variable("LDMPROBE_STORE").removeprefix("s3://").partition("/")[0]
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    files = s3fs.S3FileSystem(
        endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True
    )
    deadline = time.monotonic() + _LIMIT_S
    # Retry on errors, because the S3 gateway accepts requests before the servers behind it are
    # ready.
    while True:
        try:
            if not files.exists(bucket):
                files.mkdir(bucket)
            files.pipe_file(f"{bucket}/.probe", b"there")
            files.rm_file(f"{bucket}/.probe")
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise SetupError(
                    f"LDMPROBE_STORE: bucket {bucket} is not writable "
                    f"({without_logins(str(error))}). Fix: check the object store and its keys"
                ) from None
            time.sleep(0.3)


def deploy() -> None:
    """Create the work pool that LDMPROBE_POOL names, and its deployments.

    Raises:
        SetupError: Prefect's command failed; the message contains the last lines of its output.
    """
    pool = _variable("LDMPROBE_POOL")
    _prefect("work-pool", "create", pool, "--type", "process", "--overwrite")
    _prefect("deploy", "--prefect-file", str(DEPLOYMENTS), "--name", "*/process")


def watch_over_flow_runs() -> None:
    """Create a Prefect automation that marks flow runs without heartbeats as crashed.

    A flow that resumes a study also marks the flow run that died (`flows.run_lock`).  The
    automation is for flow runs that are not resumed.  An automation of this name that expects
    other events, which an earlier release created, is replaced.
    """
    from prefect.client.orchestration import get_client

    watch = crash_automation(_SILENCE)
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(watch.name)
        for earlier in found:
            if getattr(earlier.trigger, "expect", None) == getattr(watch.trigger, "expect", None):
                return
        client.create_automation(watch)
        for earlier in found:
            client.delete_automation(earlier.id)


def crash_automation(silence: timedelta) -> AutomationCore:
    """Return the Prefect automation that marks flow runs without heartbeats as crashed.

    A flow run that has ended or was suspended sends no heartbeats and is left alone: its last event
    is one that the automation expects.

    Args:
        silence: time without a heartbeat after which a flow run counts as crashed, at least 10 s.
    """
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.states import StateType

    name, beat = "ldmprobe: a silent flow run has crashed", "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            after={beat},
            expect={beat, SUSPENSION_EVENT, *(f"prefect.flow-run.{end}" for end in ends)},
            threshold=1,
            within=silence,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="it fell silent")],
    )


def _variable(name: str) -> str:
    """Return an environment variable; raise `SetupError` if it is missing or empty."""
    value = os.environ.get(name)
    if not value:
        raise SetupError(
            f"{name}: not set. Fix: read the file env in the stack's data folder into the shell"
        )
    return value


def _prefect(*words: str) -> None:
    """Run a command of the Prefect CLI; raise `SetupError` if it fails."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last_lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise SetupError(f"prefect {words[0]} failed: {' '.join(last_lines)}")


if __name__ == "__main__":
    main()
