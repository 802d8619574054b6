"""Clients of an object store: the one that Zarr data goes by, chunk after chunk.

`obstore` (the Rust crate object_store, by its own authors) moves chunks; what is not an array, and
is asked for once, goes by s3fs (`ldmprobe_core.places`).  ``LDMPROBE_CHUNKS=s3fs`` sends chunks by
s3fs as well, should an object store need it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import botocore.session
from obstore.store import S3Store
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.places import client_options

CLIENT = "LDMPROBE_CHUNKS"

_RETRIES: Any = {
    # As `places` has it for s3fs: later and later, with jitter; then the unit of work fails.
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=20),
        "base": 2,
    },
}


def zarr_store(url: str) -> Store:
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
    return ObjectStore(_bucket(bucket, prefix, *_identity()))


def _identity() -> tuple[str | None, ...]:
    """What a client is made from: another endpoint or key is another client."""
    names = ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID")
    return tuple(os.environ.get(name) for name in names)


@lru_cache(maxsize=64)
def _bucket(bucket: str, prefix: str, endpoint: str | None, *_identity: str | None) -> S3Store:
    session = botocore.session.get_session()
    endpoint = endpoint or session.get_config_variable("endpoint_url")
    region = session.get_config_variable("region") or "us-east-1"
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
        credential_provider=_Credentials(session),
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
