"""Client of an object store for the chunks of Zarr arrays.

Chunks are transferred by `obstore`, Python bindings of the Rust crate object_store, and other files
by s3fs (`ldmprobe_core.storage.filesystem`).  For an object store that obstore does not support,
the environment variable ``LDMPROBE_CHUNKS=s3fs`` selects s3fs for chunks too.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import botocore.session
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, ObjectStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.filesystem import client_options
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from ldmprobe_core.storage.stores.regular_files import RegularFileStore

CLIENT = "LDMPROBE_CHUNKS"

T = TypeVar("T")

RETRIES: Any = {
    # obstore retries a failed request with exponential backoff.  With these values it gives up
    # after about the same time as s3fs does with the settings in
    # `ldmprobe_core.storage.filesystem`.  The unit of work then fails.
    "max_retries": 5,
    "retry_timeout": timedelta(minutes=1),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=20),
        "base": 2,
    },
}
"""Settings of obstore: number, duration and backoff of the retries of one request."""


def require_asserts() -> None:
    """Check that Python executes assert statements, which ``python -O`` removes and Zarr needs.

    Raises:
        UserError: Python runs without assert statements.
    """
    if not __debug__:
        raise UserError(
            "python -O: this option removes assert statements, without which Zarr cannot open "
            "groups. Fix: start Python without -O, and unset PYTHONOPTIMIZE"
        )


def open_store(url: str) -> Store:
    """Open the Zarr store in a folder or below a prefix of a bucket.

    Raises:
        UserError: ``LDMPROBE_CHUNKS`` names an unknown client, or there are no credentials.
    """
    if "://" not in url:
        return RegularFileStore(url)
    client = os.environ.get(CLIENT, "obstore")
    if client not in ("obstore", "s3fs"):
        raise UserError(
            f"{CLIENT}: unknown client ({client!r}). Fix: set {CLIENT} to obstore or s3fs, or "
            "unset it"
        )
    if client == "s3fs" or not url.startswith("s3://"):
        options = {**client_options(url), "asynchronous": True}
        return FsspecStore.from_url(url, storage_options=options)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return Bucket(_bucket(bucket, prefix, *_identity()))


class Bucket(ObjectStore[S3Store]):
    """Zarr store on obstore that adds retries, and raises OSError instead of obstore's errors.

    obstore retries a request that fails, but not one whose response is cut off; this class does.

    Raises, from every method:
        PermissionError: the credentials are refused.
        OSError: the request failed at every attempt.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the value of a key or a byte range of it; None if the key does not exist."""
        return await _with_retries(lambda: super(Bucket, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value under a key."""
        await _with_retries(lambda: super(Bucket, self).set(key, value))

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        return await _with_retries(lambda: super(Bucket, self).exists(key))

    async def delete(self, key: str) -> None:
        """Remove a key and its value."""
        await _with_retries(lambda: super(Bucket, self).delete(key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names of a group's members."""

        async def names() -> list[str]:
            return [name async for name in super(Bucket, self).list_dir(prefix)]

        for name in await _with_retries(names):
            yield name


async def _with_retries(ask: Callable[[], Awaitable[T]]) -> T:
    """Await a request, repeat it if it fails, and raise the last failure as an OSError."""
    for wait in (*_WAITS, None):
        try:
            return await ask()
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(_line(error)) from error
        except BaseError as error:
            if wait is None:
                raise OSError(_line(error)) from error
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
    raise RuntimeError("unreachable: the last attempt returns or raises")


_WAITS = (0.1, 0.5, 2.0)


def _line(error: BaseError) -> str:
    """Shorten the message of an obstore error to its first line."""
    return f"object store: {str(error).partition(chr(10))[0]}"


def _identity() -> tuple[str | None, ...]:
    """Return the values of the environment variables on which a cached S3 client depends."""
    return tuple(os.environ.get(f"AWS_{name}") for name in _SETTINGS)


_SETTINGS = (
    "ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "ACCESS_KEY_ID", "REGION", "DEFAULT_REGION",
    "CA_BUNDLE", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE",
)  # fmt: skip


@lru_cache(maxsize=64)
def _bucket(bucket: str, prefix: str, *_identity: str | None) -> S3Store:
    """Build the S3 client of a prefix; `_identity` serves only as part of the cache key."""
    bypass_proxies_for_loopback()
    session = botocore.session.get_session()
    credentials = BotocoreCredentials(session)
    # obstore reads the endpoint and the region from the environment only, and reads no
    # certificates.  botocore also reads the AWS config file (profile and section `services`), so
    # the values that botocore finds are passed to obstore.
    meta = session.create_client("s3", region_name=os.environ.get("AWS_REGION")).meta
    region = meta.region_name if meta.region_name not in (None, "aws-global") else "us-east-1"
    endpoint = None if ".amazonaws.com" in meta.endpoint_url else meta.endpoint_url
    client_options: Any = {
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "connect_timeout": "10s",
        "timeout": "120s",
    }
    if bundle := session.get_config_variable("ca_bundle"):
        client_options["root_certificate"] = _certificates(bundle)
    return S3Store(
        bucket,
        prefix=prefix,
        region=region,
        config={"endpoint": endpoint} if endpoint else {},
        client_options=client_options,
        retry_config=RETRIES,
        credential_provider=credentials,
    )


def _certificates(bundle: str) -> bytes:
    """Read the CA certificates (PEM) with which the object store's certificate is verified.

    Raises:
        UserError: the file cannot be read, or holds no certificate.
    """
    path = Path(bundle).expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        return path.read_bytes()
    except OSError as error:  # A file without valid certificates raises SSLError, an OSError.
        raise UserError(
            f"AWS_CA_BUNDLE: the certificates cannot be read ({bundle}: {error.strerror}). Fix: "
            "name a file of certificates in PEM, or unset it"
        ) from None


class BotocoreCredentials:
    """Callable that gives obstore the credentials that botocore finds and refreshes."""

    def __init__(self, session: botocore.session.Session) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise UserError(
                "object store: no credentials. Fix: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        self._credentials = credentials

    def __call__(self) -> Any:
        """Return the current keys, as obstore's ``S3Credential``; obstore asks every 5 minutes."""
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }
