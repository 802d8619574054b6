"""Zarr stores of runs in a local folder, or in a bucket accessed through obstore or s3fs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import obstore
from obstore.store import S3Store
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, ObjectStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.stores.fsspec_files import client_options
from ldmprobe_core.storage.stores.object_files import folder_entries
from ldmprobe_core.storage.stores.regular_files import RegularFileStore
from ldmprobe_core.storage.stores.s3_client import connect, retried, uses_obstore


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
        UserError: ``LDMPROBE_S3_CLIENT`` names an unknown client, or there are no credentials.
    """
    if "://" not in url:
        return RegularFileStore(url)
    if uses_obstore(url):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return Bucket(connect(bucket, prefix))
    options = {**client_options(url), "asynchronous": True}
    return FsspecStore.from_url(url, storage_options=options)


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
        return await retried(lambda: super(Bucket, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value under a key."""
        await retried(lambda: super(Bucket, self).set(key, value))

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        return await retried(lambda: super(Bucket, self).exists(key))

    async def delete(self, key: str) -> None:
        """Remove a key and its value."""
        await retried(lambda: super(Bucket, self).delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys below the path of a group or array."""
        await retried(lambda: super(Bucket, self).delete_dir(prefix))

    async def is_empty(self, prefix: str) -> bool:
        """Return whether no key has this prefix."""
        return await retried(lambda: super(Bucket, self).is_empty(prefix))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names of a group's members."""
        key = prefix.strip("/")
        listing = await retried(lambda: obstore.list_with_delimiter_async(self.store, key))
        files, folders = folder_entries(listing, key)
        for name in (*folders, *files):
            yield name
