"""File client that uses obstore to access the files below a prefix of a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import obstore

from ldmprobe_core.storage.stores.s3_client import T, connect, retried, wait_for

_CONCURRENCY = 32
"""Number of files that are written at once."""


class ObjectFiles:
    """Implementation of `FileClient` that uses obstore to access a run's files in an object store.

    Args:
        url: ``s3://bucket/prefix`` or ``s3://bucket``.
        patient: whether failed requests are repeated for half a minute, or only once.

    Attributes:
        store: obstore's connection to the bucket.

    Raises:
        UserError: there are no keys, or the file of certificates is unreadable.
    """

    def __init__(self, url: str, patient: bool = True) -> None:
        bucket, _, self._prefix = url.removeprefix("s3://").partition("/")
        # Connect to the whole bucket, not to the prefix of one run, so that all runs in the bucket
        # share one connection.
        self.store = connect(bucket, patient=patient)
        self._patient = patient

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        try:
            self._ask(lambda: obstore.head_async(self.store, self._key(name)))
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Read an object's bytes."""

        async def read() -> bytes:
            # The request and the download of the bytes are in one function, so that both are
            # repeated if either fails.
            response = await obstore.get_async(self.store, self._key(name))
            return bytes(await response.bytes_async())

        return self._ask(read)

    def write(self, name: str, data: bytes) -> None:
        """Write an object by one request, however large it is."""
        self._ask(lambda: obstore.put_async(self.store, self._key(name), data, use_multipart=False))

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several objects concurrently."""
        waiting = asyncio.Semaphore(_CONCURRENCY)

        async def write(key: str, data: bytes) -> None:
            async with waiting:
                await retried(
                    lambda: obstore.put_async(self.store, key, data, use_multipart=False),
                    self._patient,
                )

        async def write_all() -> None:
            await asyncio.gather(*(write(self._key(name), data) for name, data in files.items()))

        wait_for(write_all())

    def create(self, name: str, data: bytes) -> bool:
        """Create an object by a conditional PUT, and return whether this call created it."""
        key = self._key(name)
        try:
            self._ask(
                lambda: obstore.put_async(self.store, key, data, mode="create", use_multipart=False)
            )
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove an object, if it exists."""
        self._ask(lambda: obstore.delete_async(self.store, self._key(name)))

    def remove_folder(self, name: str) -> None:
        """Remove all objects below a prefix."""
        key = self._key(name)
        paths = [str(meta["path"]) for meta in self._below(key)]
        if not paths:
            return
        self._ask(lambda: obstore.delete_async(self.store, paths))
        parent, _, folder = key.rpartition("/")
        _, remaining = folder_entries(
            self._ask(lambda: obstore.list_with_delimiter_async(self.store, parent)), parent
        )
        if folder in remaining:
            # Some object stores, such as SeaweedFS, have folders, which stay when they are empty.
            # They are removed from the deepest one up.
            folders = {path[:end] for path in paths for end in _slashes(path) if end >= len(key)}
            deepest_first = sorted(folders, key=lambda path: (-path.count("/"), path))
            # Each call of obstore deletes at most 1000 folders, which is one request.  If it were
            # given more folders, obstore would send several requests at once.
            for part in (deepest_first[i : i + 1000] for i in range(0, len(folders), 1000)):
                self._ask(lambda part=part: obstore.delete_async(self.store, part))  # type: ignore[misc]

    def entries(self, name: str) -> tuple[list[str], list[str]]:
        """List the last parts of the keys and of the prefixes directly below a prefix."""
        key = self._key(name)
        return folder_entries(
            self._ask(lambda: obstore.list_with_delimiter_async(self.store, key)), key
        )

    def modified(self, name: str) -> datetime:
        """Return when an object was written, by the store's clock."""
        head = self._ask(lambda: obstore.head_async(self.store, self._key(name)))
        return head["last_modified"]

    def size(self) -> int:
        """Return the total size in bytes of all objects."""
        return sum(int(meta["size"]) for meta in self._below(self._key("")))

    def _below(self, key: str) -> list[Any]:
        """List the metadata of all objects below a prefix."""

        async def collect() -> list[Any]:
            return list(await obstore.list(self.store, key).collect_async())

        return self._ask(collect)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return wait_for(retried(call, self._patient))


def folder_entries(listing: Any, key: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the objects and of the folders in a listing of a prefix.

    Args:
        listing: result of ``obstore.list_with_delimiter``.
        key: the prefix that was listed.
    """
    # An object with the key of the folder itself marks an empty folder on some stores.
    files = [meta["path"] for meta in listing["objects"] if meta["path"] != key]
    names = [sorted(path.rpartition("/")[2] for path in paths)
             for paths in (files, listing["common_prefixes"])]  # fmt: skip
    return names[0], names[1]


def _slashes(path: str) -> list[int]:
    """Return the positions of all slashes in a path."""
    return [place for place, letter in enumerate(path) if letter == "/"]
