"""Retries of a whole unit of work that failed because of the network or a server.

Single requests to an object store are retried in `storage.filesystem` and
`storage.stores.object_store`.
"""

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
"""Errors that a retry would meet again: a full disk, no permission, a name that is too long."""


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed after this error."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, OSError):  # includes timeouts and broken connections
        return error.errno not in _PERMANENT
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    return isinstance(error, (HTTPClientError, aiohttp.ClientError))


async def should_retry(_task: Task, _run: TaskRun, state: State) -> bool:
    """Prefect's ``retry_condition_fn``: whether to retry a failed task run."""
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
"""Options of a task that runs a unit of work, which is retried as a whole, at most four times."""
