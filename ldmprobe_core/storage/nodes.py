"""Functions that open a run's Zarr groups and arrays; damaged metadata raises `RunError`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import zarr
from pydantic import BaseModel, ConfigDict, ValidationError
from zarr.abc.store import Store
from zarr.errors import ZarrUserWarning

from ldmprobe_core.errors import LdmprobeError, RunError, UserError, counted
from ldmprobe_core.storage.filesystem import Location

# Zarr warns about files that it does not recognize: arrays without metadata, for which this module
# raises an error, and files such as study.json, which are expected.
warnings.filterwarnings("ignore", "Object at .* is not recognized", ZarrUserWarning)


@contextmanager
def explained_metadata(url: str, path: str) -> Iterator[None]:
    """Within a ``with`` block, convert errors due to a missing or damaged zarr.json to `RunError`.

    Raises:
        RunError: the metadata of the group or array is missing or unreadable.
    """
    try:
        yield
    except LdmprobeError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise metadata_error(url, path) from error
        # OSErrors other than FileNotFoundError come from the disk or the object store.  They do not
        # mean that metadata is damaged, so they are raised unchanged.
        raise
    # Zarr raises exceptions of many types for invalid metadata, so all are caught.
    except Exception as error:
        raise metadata_error(url, path) from error


def metadata_error(url: str, path: str) -> RunError:
    """Build the error for a group or array whose zarr.json is missing or unreadable."""
    if not path:
        return RunError(
            f"{url}: zarr.json is missing or unreadable. Fix: put it back, or move the run away "
            "and run the study again"
        )
    return RunError(
        f"{url}: {path}/zarr.json is missing or unreadable. Fix: run `ldmprobe verify {url} "
        "--redo`, which restores metadata from the run's own copy, or put the file back"
    )


def consolidated_metadata(location: Location) -> dict[str, dict[str, Any]]:
    """Read the metadata of every group and array of a run, by path, from the root's zarr.json.

    Raises:
        RunError: the root's zarr.json is missing or damaged, or lists no groups and arrays.
    """
    key = "zarr.json"
    try:
        document = json.loads(location.read_bytes(key))
        nodes = dict(document["consolidated_metadata"]["metadata"])
        if not nodes or not all(_is_node(path, node) for path, node in nodes.items()):
            raise ValueError("the consolidated metadata lists no groups or arrays of a run")
        return nodes
    except (UserError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"{location.url}: {key}, which lists the run's arrays, is missing or unreadable. Fix: "
            f"put {key} back, or move the run away and run the study again"
        ) from error


def _is_node(path: str, metadata: Any) -> bool:
    """Return whether an entry of consolidated metadata describes a group or an array."""
    safe = not {"", ".", ".."} & set(path.split("/"))
    return safe and isinstance(metadata, dict) and metadata.get("node_type") in ("group", "array")


def open_group(
    store: Store, url: str, path: str = "", mode: Literal["r", "r+"] = "r"
) -> zarr.Group:
    """Open a Zarr group of a run.

    Args:
        url: URL of the run, for messages.

    Raises:
        RunError: the group's metadata is missing or unreadable.
    """
    with explained_metadata(url, path):
        return zarr.open_group(store, path=path, mode=mode, use_consolidated=False, zarr_format=3)


def open_array(store: Store, url: str, path: str, mode: Literal["r", "r+"] = "r") -> Any:
    """Open a Zarr array of a run; arguments and errors are those of `open_group`."""
    with explained_metadata(url, path):
        return zarr.open_array(store, path=path, mode=mode, zarr_format=3)


def dimensions(array: Any) -> tuple[str, ...]:
    """Return the dimension names of an array; an array of a run always has them."""
    names = array.metadata.dimension_names
    if names is None or None in names:
        raise RunError(
            f"{array.path}: the array's dimensions have no names, so ldmprobe did not write it. "
            "Fix: remove this array from the run, or put back the original"
        )
    return tuple(str(name) for name in names)


def read_selection(array: zarr.Array[Any], index: tuple[Any, ...], in_turn: bool) -> np.ndarray:
    """Read a part of an array, as ``array.oindex`` does.

    Zarr copies element by element if a dimension has an array of indices, which takes several times
    as long as copying slices.  Consecutive indices are therefore read as a slice.

    Args:
        array: array to read.
        index: for each dimension an integer, a slice or an array of indices.
        in_turn: whether to read several slices one after another, for indices along a dimension
            whose chunks have length 1; otherwise all their chunks are requested at once.
    """
    index = tuple(_as_slice(part, size) for part, size in zip(index, array.shape, strict=True))
    lists = [axis for axis, part in enumerate(index) if isinstance(part, np.ndarray)]
    if not lists:
        return np.asarray(array[index])
    axis = lists[0]
    own = index[axis]
    if (
        len(lists) > 1
        or not in_turn
        or array.chunks[axis] != 1
        or own.dtype == bool
        or own.size < 2
    ):
        return np.asarray(array.oindex[index])
    ends = [*(np.flatnonzero(np.diff(own) != 1) + 1), len(own)]
    out_axis = axis - sum(isinstance(part, (int, np.integer)) for part in index[:axis])
    found, start = np.empty(0), 0
    for end in ends:
        part = _as_slice(own[start:end], array.shape[axis])
        values = np.asarray(array.oindex[(*index[:axis], part, *index[axis + 1 :])])
        if not start:
            shape = (*values.shape[:out_axis], len(own), *values.shape[out_axis + 1 :])
            found = np.empty(shape, values.dtype)
        found[(slice(None),) * out_axis + (slice(start, end),)] = values
        start = end
    return found


def _as_slice(part: Any, size: int) -> Any:
    """Convert consecutive indices of a dimension of the given size to a slice, and lists to arrays.

    Integers and slices are unchanged.
    """
    if isinstance(part, (int, np.integer, slice)):
        return part
    indices = np.asarray(part)
    consecutive = indices.dtype.kind in "iu" and indices.ndim == 1 and len(indices) > 0
    if consecutive and indices[0] >= 0 and indices[-1] < size and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


class _RunAttributes(BaseModel):
    """Attributes of a run's root group that this package reads; there may be others."""

    study_hash: str
    model_fingerprint: str
    labeler_fingerprints: dict[str, str | None]
    versions: dict[str, str]
    notes: list[str] = []
    log_snr: list[float | None] = []

    model_config = ConfigDict(strict=True)


def checked_attributes(url: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a run's root group after checking their types.

    Args:
        url: address of the run.
        attributes: attributes as zarr.json has them.

    Raises:
        RunError: one that this package reads is missing or has another type.
    """
    try:
        _RunAttributes.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RunError(
            f"{url}/zarr.json: the attribute {name} is damaged ({first['msg']}). Fix: put back a "
            "copy of the file, or move the run away and carry out its study again"
        ) from None
    return attributes


def require_log_snr(url: str, attributes: dict[str, Any], steps: int) -> None:
    """Check that a run's ``log_snr`` has a value for each step; runs of former releases have none.

    Args:
        url: address of the run.
        attributes: attributes of its root group.
        steps: number of the run's sampler steps.

    Raises:
        RunError: it has another number of values.
    """
    n = len(attributes.get("log_snr", []))
    if n not in (0, steps):
        raise RunError(
            f"{url}/zarr.json: the attribute log_snr is damaged ({n} values, not one for each of "
            f"the {counted(steps, 'step')}). Fix: put back a copy of the file, or move the run "
            "away and carry out its study again"
        )
