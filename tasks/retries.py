"""Which failures are tried again, and how: what a network or a server does."""

from __future__ import annotations

import errno
from typing import Any

import aiohttp
from botocore.exceptions import ClientError, HTTPClientError
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

_PERMANENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG,
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
"""What the next try would meet as well: a full disk, a place that is closed, a name too long."""


def is_transient(error: BaseException) -> bool:
    """A failure that the next try may not meet; a mistake stays a mistake."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, OSError):  # timeouts and broken connections among them
        return error.errno not in _PERMANENT
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    return isinstance(error, (HTTPClientError, aiohttp.ClientError))


async def should_retry(_task: Task, _run: TaskRun, state: State) -> bool:
    """Prefect's question whether a failed task run is to be tried again."""
    try:
        await state.aresult()
    except Exception as error:
        return is_transient(error)
    return False


RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),  # 1, 2, 4, 8 seconds
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": should_retry,
}
"""Options of a task that does a unit of work: done again as a whole, four times at most."""
