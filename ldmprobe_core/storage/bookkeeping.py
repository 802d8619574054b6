"""Bookkeeping of the files that a run has written, beside its arrays.

``creating.json`` is written first and removed last when a run is created.  It lists the files that
the creation writes: an interrupted creation is told from a run that lost its ``study.json``, and
repeated without removing files of others.

``checksums/<progress array>/<index>.json`` holds the checksums of the chunks that one unit of work
has written, by key; it is written just before the unit is recorded as complete.  A chunk's own
checksum shows that its bytes are what was written, not that they were written for this chunk: a
chunk that was copied over another one passes it, and is found by this record.
``checksums/created.json`` holds those of coordinates and samples.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

from ldmprobe_core.errors import LdmprobeError, UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.units import UNIT_KINDS

FOLDER = "checksums"
CREATED = f"{FOLDER}/created.json"
CREATING = "creating.json"

GROUPS = (
    "samples", "images", "activations", "activations_permuted", "labels", "exact_maps",
    "labels_trajectory", "labels_clean", "probes", "scores", "statistics", "interventions",
    "progress",
)  # fmt: skip
"""Groups that a run may have."""

_CRC_BYTES = 4


class ChunkRecord:
    """Checksums of the chunks that one handle of a run has written since its last complete unit.

    Args:
        location: of the run.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._checksums: dict[str, str] = {}

    def add(self, key: str, chunk: bytes) -> None:
        """Note a chunk that was written; other files, and chunks of progress, are passed over.

        Args:
            key: path in the run.
            chunk: its bytes, or at least the last four.
        """
        array, separator, _ = key.partition("/c/")
        if separator and array.rpartition("/")[2] not in _progress_arrays():
            self._checksums[key] = checksum_of(chunk).hex()

    def save(self, name: str) -> None:
        """Store the noted chunks as a record of this name; an empty record is not stored."""
        chunks, self._checksums = self._checksums, {}
        if chunks:
            self._location.write_text(name, json.dumps(chunks, indent=0, sort_keys=True))


def _progress_arrays() -> set[str]:
    return {kind.progress for kind in UNIT_KINDS.values()}


def checksum_of(chunk: bytes) -> bytes:
    """CRC-32C of a stored chunk: its last four bytes."""
    return chunk[-_CRC_BYTES:]


def record_name(array: str, index: tuple[int, ...]) -> str:
    """Name of the file with the chunks of a unit."""
    return f"{FOLDER}/{array}/{'-'.join(map(str, index))}.json"


def unit_of_record(name: str) -> tuple[str, tuple[int, ...]]:
    """Progress array and index of the unit that wrote a record; inverse of `record_name`."""
    array, _, index = name.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition("/")
    return array, tuple(int(part) for part in index.split("-"))


def read_record(location: Location, name: str) -> dict[str, bytes]:
    """Checksums of a unit's chunks, by key.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        document = json.loads(location.read_text(name))
        return {str(key): bytes.fromhex(checksum) for key, checksum in document.items()}
    except (LdmprobeError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{location.url}: {name} is damaged") from error


def record_names(location: Location, array: str) -> Iterator[str]:
    """Names of the records of one progress array's units; empty for a run that has none."""
    for name in location.files(f"{FOLDER}/{array}"):
        if name.endswith(".json"):
            yield f"{FOLDER}/{array}/{name}"


def require_no_data(location: Location) -> None:
    """Refuse to create a run in the place of one that lost its study.json.

    Raises:
        UserError: there are groups or metadata of a run whose creation was not interrupted.
    """
    if location.has(CREATING) and not _has_progress(location):
        return
    present = {*location.files(), *location.folders("")}
    remains = sorted(present & {"zarr.json", "identity", "summary.json", *GROUPS})
    if remains:
        raise UserError(
            f"store {location.url!r}: holds data of a run ({', '.join(remains)}), but no "
            "study.json. Fix: put its study.json back, or move the folder away"
        )


def lay_out(location: Location, files: dict[str, bytes], study: str) -> None:
    """Write the files of a new run; ``study.json``, written last, makes it a run.

    Args:
        files: contents of the Zarr hierarchy by key.
        study: text of ``study.json``.

    Raises:
        UserError: the location is not writable.
    """
    created = ChunkRecord(location)
    for key, data in files.items():
        created.add(key, data)
    try:
        for name in _interrupted_files(location) - files.keys():
            location.remove(name)  # as another release would have created it
        location.write_text(CREATING, json.dumps(sorted(files)))
        location.write_many(files)
    except OSError as error:
        raise location.unwritable(error) from error
    created.save(CREATED)
    location.write_text("identity", uuid.uuid4().hex)
    location.write_text("study.json", study)
    location.remove(CREATING)


def _has_progress(location: Location) -> bool:
    """Whether any unit was recorded as complete."""
    folders = [f"progress/{kind.progress}/c" for kind in UNIT_KINDS.values()]
    return any(location.files(folder) or location.folders(folder) for folder in folders)


def _interrupted_files(location: Location) -> set[str]:
    """Files of an interrupted creation, whether or not it came to write them."""
    if not location.has(CREATING):
        return set()
    try:
        names = json.loads(location.read_text(CREATING))
    except (LdmprobeError, ValueError):  # damaged: nothing is removed
        return set()
    files = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return {name for name in files if name.partition("/")[0] in (*GROUPS, "zarr.json")
            and ".." not in name.split("/")}  # fmt: skip
