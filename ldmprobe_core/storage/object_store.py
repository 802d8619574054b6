"""Clients of an object store: the one that Zarr data goes by, chunk after chunk.

`obstore` (the Rust crate object_store, by its own authors) moves chunks; what is not an array, and
is asked for once, goes by s3fs (`ldmprobe_core.storage.filesystem`).  ``LDMPROBE_CHUNKS=s3fs``
sends chunks by s3fs as well, should an object store need it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import botocore.session
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.filesystem import client_options

CLIENT = "LDMPROBE_CHUNKS"

T = TypeVar("T")

_RETRIES: Any = {
    # As `places` has it for s3fs: later and later, with jitter; then the unit of work fails.
    "max_retries": 5,
    "retry_timeout": timedelta(minutes=1),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=20),
        "base": 2,
    },
}


def open_store(url: str) -> Store:
    """The Zarr store at a place: a folder, or a prefix of a bucket.

    Raises:
        UserError: the environment names a client that there is not.
    """
    if "://" not in url:
        return LocalStore(url)
    client = os.environ.get(CLIENT, "obstore")
    if client not in ("obstore", "s3fs"):
        raise UserError(f"{CLIENT} is {client!r}: give obstore or s3fs, or leave it out")
    if client == "s3fs" or not url.startswith("s3://"):
        options = {**client_options(url), "asynchronous": True}
        return FsspecStore.from_url(url, storage_options=options)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return Bucket(_bucket(bucket, prefix, *_identity()))


class Bucket(ObjectStore[S3Store]):
    """obstore's Zarr store, more patient, with errors of the system as any other store has them.

    obstore repeats a request that fails, but not an answer that breaks off within.

    Raises, from every verb:
        PermissionError: the keys are refused.
        OSError: the object store failed, after every repetition.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A value, or a part of it; None where there is none."""
        return await _with_retries(lambda: super(Bucket, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value."""
        await _with_retries(lambda: super(Bucket, self).set(key, value))

    async def exists(self, key: str) -> bool:
        """A key is there."""
        return await _with_retries(lambda: super(Bucket, self).exists(key))

    async def delete(self, key: str) -> None:
        """Remove a value."""
        await _with_retries(lambda: super(Bucket, self).delete(key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Names in a group."""

        async def names() -> list[str]:
            return [name async for name in super(Bucket, self).list_dir(prefix)]

        for name in await _with_retries(names):
            yield name


async def _with_retries(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask, and again where the answer broke off; in the end, an error of the system, in a line."""
    for wait in (*_WAITS, None):
        try:
            return await ask()
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(_line(error)) from error
        except BaseError as error:
            if wait is None:
                raise OSError(_line(error)) from error
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("the last try has no wait")


_WAITS = (0.1, 0.5, 2.0)


def _line(error: BaseError) -> str:
    return f"object store: {str(error).partition(chr(10))[0]}"


def _identity() -> tuple[str | None, ...]:
    """What a client is made from: another endpoint or key is another client."""
    names = ("ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "ACCESS_KEY_ID", *_REGION)
    return tuple(os.environ.get(f"AWS_{name}") for name in names)


_REGION = ("REGION", "DEFAULT_REGION")


@lru_cache(maxsize=64)
def _bucket(bucket: str, prefix: str, *_identity: str | None) -> S3Store:
    session = botocore.session.get_session()
    credentials = _Credentials(session)
    # Endpoint and region as AWS's own client finds them: environment, profile, services section.
    meta = session.create_client("s3", region_name=os.environ.get("AWS_REGION")).meta
    region = meta.region_name if meta.region_name not in (None, "aws-global") else "us-east-1"
    endpoint = None if ".amazonaws.com" in meta.endpoint_url else meta.endpoint_url
    return S3Store(
        bucket,
        prefix=prefix,
        region=region,
        config={"endpoint": endpoint} if endpoint else {},
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": "10s",
            "timeout": "120s",
        },
        retry_config=_RETRIES,
        credential_provider=credentials,
    )


class _Credentials:
    """Keys as any AWS client finds them: environment, profile, role; asked for again in time."""

    def __init__(self, session: botocore.session.Session) -> None:
        found = session.get_credentials()
        if found is None:
            raise UserError(
                "no credentials for the object store: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        self.found = found

    def __call__(self) -> Any:
        frozen = self.found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }
