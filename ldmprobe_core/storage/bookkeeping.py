"""JSON files beside a run's arrays: chunk checksums, and a marker that creation is unfinished.

``creating.json`` exists only while a run is being created, and lists the files that the creation
writes.  If the creation is interrupted, this file stays.  It shows that the run is incomplete, and
not a complete run that lost its ``study.json``.  The creation can then be repeated without removing
any other files.

``checksums/<progress array>/<index>.json`` maps the key of each chunk that one unit of work has
written to the chunk's checksum.  The file is written just before the unit is recorded as complete.
Every chunk also ends with its own checksum, but a chunk that was copied over another one passes
that check; comparing it with the record reveals the copy.  ``checksums/created.json`` is the record
of the chunks that the creation wrote: coordinates and samples.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator

from ldmprobe_core.errors import LdmprobeError, UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.units import UNIT_KINDS, is_progress_array

FOLDER = "checksums"
CREATED = f"{FOLDER}/created.json"
CREATING = "creating.json"

GROUPS = (
    "samples", "prompts", "images", "step_images", "activations", "activations_permuted", "labels",
    "exact_maps", "labels_trajectory", "labels_clean", "probes", "scores", "statistics",
    "interventions", "progress",
)  # fmt: skip
"""Names of the top-level groups that a run may have."""

_CRC_BYTES = 4

_RECORD = re.compile(r"(0|[1-9][0-9]*)(-(0|[1-9][0-9]*))*\.json")
"""Name of a unit's checksum file, see `record_name`."""


class ChunkRecord:
    """Buffer for the chunk checksums of one unit of work, which `save` writes to a file.

    Args:
        location: the run's folder or prefix.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._checksums: dict[str, str] = {}

    def add(self, key: str, chunk: bytes) -> None:
        """Add the checksum of a chunk that was written.

        Files that are not chunks are ignored, and so are chunks of progress arrays.

        Args:
            key: the file's path in the run.
            chunk: the chunk's bytes, or at least the last four.
        """
        place = chunk_place(key)
        if place is not None and not is_progress_array(place[0]):
            self._checksums[key] = checksum_of(chunk).hex()

    def save(self, name: str) -> None:
        """Write the collected checksums to the file ``name``; if there are none, write no file."""
        chunks, self._checksums = self._checksums, {}
        if chunks:
            self._location.write_text(name, json.dumps(chunks, indent=0, sort_keys=True))


def chunk_place(key: str) -> tuple[str, tuple[int, ...]] | None:
    """Split the key of a chunk into its array's path and its index; None for another file.

    A property may have the name ``c``, so that ``labels/c/c/0/0/0`` is a chunk of ``labels/c``, and
    ``scores/c/zarr.json`` is no chunk.
    """
    array, separator, index = key.rpartition("/c/")
    parts = index.split("/")
    if not separator or not all(part.isdecimal() for part in parts):
        return None
    return array, tuple(int(part) for part in parts)


def checksum_of(chunk: bytes) -> bytes:
    """Return the last four bytes of a stored chunk, which are its CRC-32C checksum."""
    return chunk[-_CRC_BYTES:]


def record_name(array: str, index: tuple[int, ...]) -> str:
    """Return the name of the file that stores the chunk checksums of one unit of work."""
    return f"{FOLDER}/{array}/{'-'.join(map(str, index))}.json"


def unit_of_record(name: str) -> tuple[str, tuple[int, ...]]:
    """Parse the name of a checksum file: return its progress array and the unit's index."""
    array, _, index = name.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition("/")
    return array, tuple(int(part) for part in index.split("-"))


def read_record(location: Location, name: str) -> dict[str, bytes]:
    """Read the checksum file of one unit of work: return checksums (bytes) by chunk key.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        document = json.loads(location.read_text(name))
        return {str(key): bytes.fromhex(checksum) for key, checksum in document.items()}
    except (LdmprobeError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{location.url}: the checksum file {name} is not a JSON object of checksums by key"
        ) from error


def record_names(location: Location, array: str) -> Iterator[str]:
    """Yield the names of the checksum files of all units of work in one progress array.

    Other files are left out, such as copies that a file manager or a synchronization made.
    """
    for name in location.files(f"{FOLDER}/{array}"):
        if _RECORD.fullmatch(name):
            yield f"{FOLDER}/{array}/{name}"


def require_no_data(location: Location) -> None:
    """Check that a new run's location has no data of an older run that lost its study.json.

    Raises:
        UserError: the location holds groups or metadata of a run that was created completely.
    """
    if location.has(CREATING) and not _has_progress(location):
        return
    present = {*location.files(), *location.folders("")}
    remains = sorted(present & {"zarr.json", "identity", "summary.json", *GROUPS})
    if remains:
        raise UserError(
            f"store: {location.url!r} holds data of a run ({', '.join(remains)}), but no "
            "study.json. Fix: put its study.json back, or move this folder away"
        )


def lay_out(location: Location, files: dict[str, bytes], study: str) -> None:
    """Write the files of a new run, with ``study.json`` last to mark the creation as complete.

    Args:
        files: contents of the files of the Zarr hierarchy, by key.
        study: text of ``study.json``.

    Raises:
        UserError: the location is not writable.
    """
    created = ChunkRecord(location)
    for key, data in files.items():
        created.add(key, data)
    try:
        for name in _interrupted_files(location) - files.keys():
            # Remove the files of the interrupted creation that this creation does not overwrite.
            # Another release of ldmprobe may have written them for arrays that this release does
            # not create, and these arrays would otherwise stay in the run.
            location.remove(name)
        location.write_text(CREATING, json.dumps(sorted(files)))
        location.write_many(files)
    except OSError as error:
        raise location.unwritable(error) from error
    created.save(CREATED)
    write_identity(location)
    location.write_text("study.json", study)
    location.remove(CREATING)


def write_identity(location: Location) -> None:
    """Give a run its random identity, which tells it from an earlier run at its address.

    A run that has one keeps it.  One that is lost, empty or not text is replaced: it only keys
    caches of processes.
    """
    if location.has("identity"):
        known = location.read_bytes("identity").strip()
        if known and known.isascii():
            return
    location.write_text("identity", uuid.uuid4().hex)


def _has_progress(location: Location) -> bool:
    """Return whether any unit of work was recorded as complete."""
    folders = [f"progress/{kind.progress}/c" for kind in UNIT_KINDS.values()]
    return any(location.files(folder) or location.folders(folder) for folder in folders)


def _interrupted_files(location: Location) -> set[str]:
    """Return the files in ``creating.json`` that an interrupted creation may have written."""
    if not location.has(CREATING):
        return set()
    try:
        names = json.loads(location.read_text(CREATING))
    except (LdmprobeError, ValueError):
        # The list of files is damaged, so it is unknown which files the interrupted creation wrote.
        # In this case no file is removed.
        return set()
    files = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return {name for name in files if name.partition("/")[0] in (*GROUPS, "zarr.json")
            and ".." not in name.split("/")}  # fmt: skip
