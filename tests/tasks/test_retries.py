"""Tests of the choice of errors after which a task is retried."""

from __future__ import annotations

import asyncio
import errno

import aiohttp
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from prefect.states import Completed, exception_to_failed_state

from ldmprobe_core.errors import UserError
from tasks.retries import is_transient, should_retry


def _answered(status):
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("cut"), True),
        (OSError(errno.EIO, "disk"), True),
        (OSError("an object store's server error"), True),
        (TimeoutError(), True),
        (aiohttp.ClientPayloadError("cut within"), True),
        (ReadTimeoutError(endpoint_url="http://here"), True),
        (ConnectionClosedError(endpoint_url="http://here"), True),
        (_answered(503), True),
        (_answered(429), True),
        (_answered(403), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EDQUOT, "quota"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (PermissionError(errno.EACCES, "closed"), False),
        (PermissionError("Forbidden"), False),
        (FileNotFoundError("no such bucket"), False),
        (UserError("a mistake"), False),
        (ValueError("region"), False),
        (RuntimeError("hook"), False),
    ],
)
def test_is_transient_and_should_retry(error, again):
    async def ask():
        return await should_retry(None, None, await exception_to_failed_state(error))

    assert is_transient(error) is again
    assert asyncio.run(ask()) is again


def test_should_retry_is_false_after_success():
    assert asyncio.run(should_retry(None, None, Completed(data=1))) is False
