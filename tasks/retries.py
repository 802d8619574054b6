"""Rules by which Prefect repeats a unit of work that failed because of the network or a server.

`ldmprobe_core.storage` already repeats single requests to an object store.  The rules here apply if
a unit fails in spite of that.
"""

from __future__ import annotations

import errno
from typing import Any

import aiohttp
from botocore.exceptions import ClientError, HTTPClientError
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from ldmprobe_core.labelers.checks.results import LabelerError, LabelerFilesError

_PERMANENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG,
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
"""Error numbers that a retry would meet again, such as a full disk or a missing permission."""


def is_transient(error: BaseException) -> bool:
    """Return True if the error may go away by itself, as network and server errors do."""
    if isinstance(error, (LabelerError, LabelerFilesError)) and error.__cause__ is not None:
        # The labeler may have failed for lack of a network.
        return is_transient(error.__cause__)
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    # Timeouts and broken connections are OSErrors too, so only permanent error numbers end the
    # retries.
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    return isinstance(error, (HTTPClientError, aiohttp.ClientError))


async def should_retry(_task: Task, _run: TaskRun, state: State) -> bool:
    """Return whether to retry a failed task run; Prefect calls this as ``retry_condition_fn``."""
    try:
        await state.aresult()
    except Exception as error:
        return is_transient(error)
    return False


RETRIES: dict[str, Any] = {
    "retries": 4,
    # The delays before the four retries are 1, 2, 4 and 8 seconds.
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": should_retry,
}
"""Options of every Prefect task that carries out a unit of work."""
