"""Looking for damage in a run, and taking back the marks of what has to be done again.

Arrays are made by units of work; a unit without its mark is redone by the next start, and comes out
the same.  What no unit makes (samples, coordinates, interventions) is named only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import zarr

from ldmprobe_core.storage.checksum_store import CorruptChunkError
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import BUFFERS

_PROGRESS_OF_GROUP = {
    "images": "generated",
    "activations": "generated",
    "activations_permuted": "generated",
    "exact_maps": "generated",
    "statistics": "accumulated",
    "labels": "labeled",
    "labels_trajectory": "labeled",
    "labels_clean": "labeled",
    "probes": "probed",
    "scores": "probed",
}
"""Group to the mark of the units that write it."""

Unit = tuple[str, tuple[int, ...]]
"""A mark's name and its place: ``("generated", (batch,))`` or ``("probed", (step, layer))``; all
units of a part are one, ``("accumulated", (part,))``, since each adds to what the last one left."""


def find_corrupt_chunks(run: Run, array: str = "") -> Iterator[CorruptChunkError]:
    """Read every chunk that should be there, and give those that are not what was written.

    Args:
        array: path of one array or group to look at; everything, if empty.
    """
    root = zarr.open_group(run.zarr_store(require_complete=True), mode="r", use_consolidated=False)
    damaged_marks = list(_damaged(root["progress"], _never))
    yield from damaged_marks
    if damaged_marks:
        return  # what else should be there is not known
    done = {str(name): run.progress.counts(str(name)) for name in run.open("progress").data_vars}
    layers = run.probe_inputs

    def expected(path: str, dims: tuple[str, ...], place: tuple[int, ...]) -> bool:
        unit = unit_of(path, dims, place, layers)
        if unit is None:
            return True
        count = int(done[unit[0]][unit[1]])
        if "buffer" in dims and count % BUFFERS != place[dims.index("buffer")]:
            return False  # of the two, the one that does not count
        return count > 0

    members = [(array, root[array])] if array else root.members()
    for name, member in members:
        group = name.partition("/")[0]
        if group != "progress":
            if group == "interventions":
                yield from _damaged_interventions(run, root, array)
            else:
                yield from _damaged(member, expected)


def clear_progress(run: Run, damage: Iterable[CorruptChunkError]) -> list[CorruptChunkError]:
    """Take away the marks of the units that made damaged chunks, so that they are done again.

    Returns:
        what cannot be made again.
    """
    left = []
    root = zarr.open_group(run.store, mode="r", use_consolidated=False)
    layers: list[str] = []
    for chunk in damage:
        group, _, name = chunk.array.partition("/")
        if group == "progress" and name in _PROGRESS_OF_GROUP.values():
            run.progress.set_count(
                name, *chunk.chunk_index, count=0
            )  # a mark is a chunk of its own
            continue
        layers = layers or run.probe_inputs
        array = root[chunk.array]
        assert isinstance(array, zarr.Array)
        unit = unit_of(chunk.array, _dims(array), chunk.chunk_index, layers)
        if unit is None:
            left.append(chunk)
        else:
            run.progress.clear(unit[0], *unit[1])
    return left


def unit_of(
    path: str, dims: tuple[str, ...], place: tuple[int, ...], layers: list[str]
) -> Unit | None:
    """The unit of work that writes a chunk; None where no unit does.

    Args:
        path: of the array.
        dims: names of the array's dimensions.
        place: of the chunk in the array's grid of chunks, which follow the units.
        layers: everything that is probed, in order.
    """
    group, _, rest = path.partition("/")
    mark, at = _PROGRESS_OF_GROUP.get(group), dict(zip(dims, place, strict=True))
    if mark is None or len(dims) < 2:  # one-dimensional ones are coordinates
        return None
    if mark == "probed":
        layer = at["layer"] if "layer" in at else layers.index(rest.rpartition("/")[0])
        return mark, (at["step"], layer)
    return mark, (at["accumulator"] if mark == "accumulated" else at["sample"],)


def _damaged_interventions(run: Run, root: zarr.Group, array: str) -> Iterator[CorruptChunkError]:
    """Interventions keep marks of their own: a hole in one that is not done is no damage."""
    for name in run.location.folders("interventions"):
        path = f"interventions/{name}"
        if array and not f"{array}/".startswith(f"{path}/"):
            continue
        done = bool(run.open(path)["done"].values.all())
        yield from _damaged(root[array or path], (lambda *_: True) if done else _never)


def _never(*_: object) -> bool:
    return False


def _damaged(
    node: zarr.Group | zarr.Array, expected: Callable[[str, tuple[str, ...], tuple[int, ...]], bool]
) -> Iterator[CorruptChunkError]:
    """Damage below a node; what is missing counts only where it is expected."""
    if isinstance(node, zarr.Group):
        for _, member in node.members():
            yield from _damaged(member, expected)
        return
    for place in product(*(range(count) for count in node.cdata_shape)):
        here = expected(node.path, _dims(node), place)
        if not here and "buffer" in _dims(node):
            continue  # nobody reads it, and the next unit of its part writes it anew
        try:
            node.blocks[place]
        except CorruptChunkError as damage:
            if damage.reason == "changed" or here:
                yield damage


def _dims(array: zarr.Array) -> tuple[str, ...]:
    names = array.metadata.dimension_names  # type: ignore[union-attr]
    assert names is not None, "every array of a run names its dimensions"
    return tuple(str(name) for name in names)
