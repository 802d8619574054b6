"""Zarr store wrapper that verifies each chunk's CRC-32C on read.

Every chunk of a run ends with a CRC-32C, which `ldmprobe_core.storage.group_builder` configures.
If a disk or a network has changed a chunk, reading it raises an error that names the chunk.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import google_crc32c
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.bookkeeping import ChunkRecord, chunk_place
from ldmprobe_core.storage.filesystem import explained_failures
from ldmprobe_core.storage.stores.metadata_cache import (
    cached_fact_async,
    documents,
    invalidate_node,
    members,
)
from ldmprobe_core.storage.stores.regular_files import NotRegularError

RequiredChunks = bool | Callable[[str], bool]
"""Rule for chunks that must exist: True for all, False for none, or a predicate of the key."""

_CRC_BYTES = 4

NOT_REGULAR = "not a regular file"
"""Reason of a `CorruptChunkError` for a folder, pipe or circular link in the place of a file."""

_OLDER = (".zarray", ".zattrs", ".zgroup", ".zmetadata")
"""Names of metadata files of Zarr v2, which no run has; look-ups of them send no request."""


class CorruptChunkError(RunError):
    """Error for a chunk or metadata of a run that is missing or has changed since it was written.

    Attributes:
        key: path in the run, such as ``images/image/c/0/0/0/0`` or ``images/image/zarr.json``.
        reason: ``missing``, ``changed``, or ``not a regular file``.
    """

    def __init__(self, url: str, key: str, reason: str) -> None:
        # Worker processes pickle exceptions, and unpickling calls the class with `args`, so the
        # base class must receive the same arguments as this method.
        super().__init__(url, key, reason)
        self.url, self.key, self.reason = url, key, reason

    def __str__(self) -> str:
        edited = self.key.removeprefix("checksums/").startswith("interventions/")
        return (
            f"{self.url}/{self.key} is {self.reason}. Fix: run `ldmprobe verify {self.url} "
            f"--redo`, then the {'intervention' if edited else 'study'} again, which repeats only "
            "the damaged units"
        )

    @property
    def is_metadata(self) -> bool:
        """Flag that is True if the missing or changed file is a zarr.json, not a chunk."""
        return self.key.endswith("/zarr.json")

    @property
    def array(self) -> str:
        """Path of the array or group to which the chunk or zarr.json belongs."""
        place = chunk_place(self.key)
        return self.key.removesuffix("/zarr.json") if place is None else place[0]

    @property
    def chunk_index(self) -> tuple[int, ...]:
        """Index of the chunk in the chunk grid of its array; empty if `key` is no chunk's."""
        place = chunk_place(self.key)
        return () if place is None else place[1]


def fixed_metadata(document: Any) -> dict[str, Any] | None:
    """Return the fields of a zarr.json that decide how data is decoded; None if it is damaged.

    Users may add attributes to a zarr.json.  The other fields, such as shape, chunks and codecs,
    must equal those of the consolidated copy.
    """
    if not isinstance(document, dict):
        return None
    skipped = ("attributes", "consolidated_metadata")
    return {key: value for key, value in document.items() if key not in skipped}


def fixed_metadata_in(root: Buffer | None) -> dict[str, dict[str, Any] | None]:
    """Return `fixed_metadata` of each node in the consolidated metadata of a root, by path.

    The result is empty if the root's zarr.json is missing or damaged.
    """
    document: Any = None if root is None else _parsed(root)
    try:
        nodes = document["consolidated_metadata"]["metadata"]
        return {path: fixed_metadata(node) for path, node in nodes.items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def _parsed(document: Buffer) -> Any:
    """Parse a zarr.json; None if it is not valid JSON."""
    try:
        return json.loads(document.to_bytes())
    except (ValueError, RecursionError):
        return None


class ChecksumStore(WrapperStore[Store]):
    """Zarr store wrapper that raises an error for missing and corrupt chunks.

    Args:
        store: Zarr store that holds the data.
        url: URL of the run, for messages.
        require_complete: chunks that have to exist, so that a missing one raises; any other
            missing chunk reads as the fill value.
        record: record to which the checksum of each written chunk is added; None adds none.
        recorded: expected checksums by key, which reveal a chunk that was copied from another key.
    """

    def __init__(
        self,
        store: Store,
        url: str = "",
        require_complete: RequiredChunks = False,
        record: ChunkRecord | None = None,
        recorded: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(store)
        self.url, self.require_complete = url, require_complete
        self._record, self._recorded = record, recorded or {}

    def _with_store(self, store: Store) -> ChecksumStore:
        """Return a wrapper like this one around another store, such as a read-only copy."""
        return type(self)(store, self.url, self.require_complete, self._record, self._recorded)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value, and verify the checksum of a chunk that is read in full.

        Raises:
            CorruptChunkError: the checksum is wrong, a chunk is missing and
                ``require_complete`` applies to it, or there is no regular file.
            RunError: the metadata contradicts its copy in the root's zarr.json.
        """
        if key.endswith("/zarr.json"):
            return await self._document(key, prototype)
        if key.rpartition("/")[2] in _OLDER:
            return None
        value = await self._read(key, prototype, byte_range)
        if chunk_place(key) is None or byte_range is not None:
            return value
        if value is None:
            required = self.require_complete
            if required(key) if callable(required) else required:
                raise CorruptChunkError(self.url, key, "missing")
            return None
        data = value.as_numpy_array()
        checksum = data[-_CRC_BYTES:].tobytes()
        if google_crc32c.value(data[:-_CRC_BYTES]).to_bytes(_CRC_BYTES, "little") != checksum:
            raise CorruptChunkError(self.url, key, "changed")
        if self._recorded.get(key, checksum) != checksum:
            # The chunk matches its own checksum but not the recorded one, so another chunk was
            # copied over this one.
            raise CorruptChunkError(self.url, key, "changed")
        return value

    async def _document(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        """Read the zarr.json of a group or array; each process requests it only once."""
        known = documents.setdefault(self.url, {})
        if key not in known:
            document = await self._read(key, prototype)
            if document is None:
                return None
            await self._require_copy(key, document, prototype)
            known[key] = document
        return known[key]

    async def _read(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            return await self._store.get(key, prototype, byte_range)
        except NotRegularError as error:
            raise CorruptChunkError(self.url, key, NOT_REGULAR) from error

    async def _require_copy(self, key: str, document: Buffer, prototype: BufferPrototype) -> None:
        """Check that a zarr.json equals its copy in the root's zarr.json.

        Either may be the damaged one.  A wrong shape, for instance, could make a reader allocate
        more memory than the machine has.  Interventions are not compared, since another process
        may have replaced them.
        """
        path = key.removesuffix("/zarr.json")
        if path.partition("/")[0] == "interventions":
            return

        async def read() -> dict[str, Any]:
            return fixed_metadata_in(await self._read("zarr.json", prototype))

        copies = await cached_fact_async(self.url, "fixed metadata", read)
        if path in copies and fixed_metadata(_parsed(document)) not in (None, copies[path]):
            raise RunError(
                f"{self.url}: {key} contradicts its copy in the run's zarr.json. Fix: put back the "
                "original of the file that has changed"
            )

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value, and drop the cached copy if the value is metadata.

        Raises:
            UserError: the disk is full, or read-only.
        """
        if key.endswith("/zarr.json"):
            invalidate_node(self.url, key.removesuffix("/zarr.json"))
        with explained_failures(self.url):
            await self._store.set(key, value)
        if self._record is not None:
            self._record.add(key, value.as_numpy_array()[-_CRC_BYTES:].tobytes())

    async def delete(self, key: str) -> None:
        """Remove a key and its value, and its cached copy if it is metadata."""
        if key.endswith("/zarr.json"):
            invalidate_node(self.url, key.removesuffix("/zarr.json"))
        with explained_failures(self.url):
            await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys below the path of a group or array, and its cached metadata."""
        invalidate_node(self.url, prefix.strip("/"))
        with explained_failures(self.url):
            await self._store.delete_dir(prefix)

    async def exists(self, key: str) -> bool:
        """Return whether a key exists; always False for metadata files of Zarr v2."""
        if key.rpartition("/")[2] in _OLDER:
            return False
        return key in documents.get(self.url, {}) or await self._store.exists(key)

    async def is_empty(self, prefix: str) -> bool:
        """Return whether no key has this prefix; a cached zarr.json counts as a key."""
        known = f"{prefix.strip('/')}/zarr.json" in documents.get(self.url, {})
        return not known and await self._store.is_empty(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of a group's members.

        The list is cached, except for the root and ``interventions``, which get new members.
        """
        known, group = members.setdefault(self.url, {}), prefix.strip("/")
        if group not in known:
            names = tuple([name async for name in self._store.list_dir(prefix)])
            if group.partition("/")[0] in ("", "interventions"):
                for name in names:
                    yield name
                return
            known[group] = names
        for name in known[group]:
            yield name

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ChecksumStore) and self._store == other._store
