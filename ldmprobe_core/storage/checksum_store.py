"""Zarr store wrapper that verifies each chunk's CRC-32C on read.

Every array of a run ends its chunks with a CRC-32C (`ldmprobe_core.storage.group_builder`), so that
what a disk or a network changed is found when it is read, and named, instead of being probed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import google_crc32c
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.metadata_cache import documents, invalidate_node, members

_CRC_BYTES = 4

_OLDER = (".zarray", ".zattrs", ".zgroup", ".zmetadata")
"""Keys of Zarr's older format, which Zarr asks for, and no run has."""


class CorruptChunkError(RunError):
    """A chunk of a run that is not what was written, or not there.

    Attributes:
        key: path of the chunk in the run, such as ``images/image/c/0/0/0/0``.
        reason: ``missing``, or ``changed``.
    """

    def __init__(self, url: str, key: str, reason: str) -> None:
        super().__init__(url, key, reason)  # all of them, so that a worker's error arrives whole
        self.url, self.key, self.reason = url, key, reason

    def __str__(self) -> str:
        return (
            f"{self.url}/{self.key} is {self.reason}, not as it was written: run `ldmprobe verify "
            f"{self.url} --redo`, and the study again to redo just what is damaged"
        )

    @property
    def array(self) -> str:
        """Path of the array it belongs to."""
        return self.key.partition("/c/")[0]

    @property
    def chunk_index(self) -> tuple[int, ...]:
        """Where it lies in the array's grid of chunks."""
        return tuple(int(i) for i in self.key.partition("/c/")[2].split("/"))


class ChecksumStore(WrapperStore[Store]):
    """A Zarr store of a run that refuses damaged chunks.

    Args:
        url: of the run, for messages.
        require_complete: also refuse chunks that are not there, where nothing may be missing any
            more.
    """

    def __init__(self, store: Store, url: str = "", require_complete: bool = False) -> None:
        super().__init__(store)
        self.url, self.require_complete = url, require_complete

    def _with_store(self, store: Store) -> ChecksumStore:
        return type(self)(store, self.url, self.require_complete)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A value, checked if it is a whole chunk.

        Raises:
            DamageError: its checksum is another one, or it is not there and must be.
        """
        if key.endswith("/zarr.json"):
            return await self._document(key, prototype)
        if key.rpartition("/")[2] in _OLDER:
            return None
        found = await self._store.get(key, prototype, byte_range)
        if "/c/" not in key or byte_range is not None:
            return found
        if found is None:
            if self.require_complete:
                raise CorruptChunkError(self.url, key, "missing")
            return None
        data = found.as_numpy_array()
        kept = data[-_CRC_BYTES:].tobytes()
        if google_crc32c.value(data[:-_CRC_BYTES]).to_bytes(_CRC_BYTES, "little") != kept:
            raise CorruptChunkError(self.url, key, "changed")
        return found

    async def _document(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        """Metadata of a group or an array, asked for once."""
        known = documents.setdefault(self.url, {})
        if key not in known:
            found = await self._store.get(key, prototype)
            if found is None:
                return None
            known[key] = found
        return known[key]

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value; cached metadata of its node is dropped."""
        if key.endswith("/zarr.json"):
            invalidate_node(self.url, key.removesuffix("/zarr.json"))
        await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        """Remove a value."""
        if key.endswith("/zarr.json"):
            invalidate_node(self.url, key.removesuffix("/zarr.json"))
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        invalidate_node(self.url, prefix.strip("/"))
        await self._store.delete_dir(prefix)

    async def exists(self, key: str) -> bool:
        """A key is there; those of Zarr's older format never are."""
        if key.rpartition("/")[2] in _OLDER:
            return False
        return key in documents.get(self.url, {}) or await self._store.exists(key)

    async def is_empty(self, prefix: str) -> bool:
        """Nothing is there; a group whose metadata was read is something."""
        known = f"{prefix.strip('/')}/zarr.json" in documents.get(self.url, {})
        return not known and await self._store.is_empty(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names in a group, asked for once: only `interventions` gets new ones."""
        known, place = members.setdefault(self.url, {}), prefix.strip("/")
        if place not in known:
            names = tuple([name async for name in self._store.list_dir(prefix)])
            if place.partition("/")[0] in ("", "interventions"):
                for name in names:
                    yield name
                return
            known[place] = names
        for name in known[place]:
            yield name

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ChecksumStore) and self._store == other._store
