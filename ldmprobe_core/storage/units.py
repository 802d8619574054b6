"""Registry of the kinds of units of work, with the Zarr groups that each kind writes.

The layout of a run, its progress record, verification and repair all use this registry.
`ldmprobe_core.pipeline.units` assigns to each kind the function that computes a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ldmprobe_core.storage.probe_schema import ProbeSchema
from ldmprobe_core.study.schema import Study

ARRAY_DIM = {"batch": "sample"}
"""Dimension of progress arrays to the matching dimension of data arrays, where names differ.

A chunk of data arrays along ``sample`` holds one batch.
"""


PROGRESS_GROUP = "progress"
"""Group of the progress arrays of all kinds of units that have none in each of their groups."""


@dataclass(frozen=True, kw_only=True)
class UnitKind:
    """Description of one kind of unit of work, such as generating a batch.

    Attributes:
        verb: name of the kind, such as ``generate``.
        progress: array that records its complete units, such as ``generated``.
        dims: dimensions of the progress array; an index stands for one unit, or for one sequence
            of units if `sequential`.
        groups: top-level groups whose chunks the units write.
        description: text that describes the progress array.
        sequential: True if the units of an index run one after another; the array then counts
            them (int64).  False if it holds 0 or 1 (uint8).
        per_group: True if each group below ``groups`` has its own progress array, created together
            with the group.  False if the array is in ``progress/`` and created with the run.
        applies_to: function that returns whether a study has units of this kind.
        create_groups: function that creates the groups of this kind; None if `RunSchema` does.
    """

    verb: str
    progress: str
    dims: tuple[str, ...]
    groups: tuple[str, ...]
    description: str
    sequential: bool = False
    per_group: bool = False
    applies_to: Callable[[Study], bool] = lambda study: True
    create_groups: Callable[[ProbeSchema], None] | None = None

    @property
    def dtype(self) -> str:
        """Data type of the progress array."""
        return "int64" if self.sequential else "uint8"

    def writes(self, dims: tuple[str, ...]) -> bool:
        """Return whether units of this kind write an array with the dimensions ``dims``.

        The arrays that units do not write are written when their group is created.

        Args:
            dims: names of the array's dimensions.
        """
        # One-dimensional arrays are coordinates, which are written when the run is created.
        if not self.per_group:
            return len(dims) > 1
        return all(ARRAY_DIM.get(dim, dim) in dims for dim in self.dims)

    def index_of_chunk(
        self, path: str, dims: tuple[str, ...], chunk_index: tuple[int, ...], layers: list[str]
    ) -> tuple[int, ...]:
        """Return the index, in the progress array, of the unit of work that writes a chunk.

        Args:
            path: path of the data array, such as ``probes/mid_block/weight``.
            dims: names of the data array's dimensions.
            chunk_index: position of the chunk in the data array's chunk grid.
            layers: names of all probe inputs, in order.  If the data array has no dimension
                ``layer``, its path gives the layer.
        """
        chunk = dict(zip(dims, chunk_index, strict=True))
        index = []
        for dim in self.dims:
            name = ARRAY_DIM.get(dim, dim)
            if name in chunk:
                index.append(chunk[name])
            else:
                if dim != "layer":
                    raise ValueError(
                        f"{path}: the array has no dimension {name}, by which units of the kind "
                        f"{self.verb!r} are indexed. Fix: correct `dims` of this UnitKind"
                    )
                index.append(layers.index(path.partition("/")[2].rpartition("/")[0]))
        return tuple(index)


GENERATE = UnitKind(
    verb="generate",
    progress="generated",
    dims=("batch",),
    groups=(
        "prompts",
        "images",
        "step_images",
        "activations",
        "activations_permuted",
        "exact_maps",
    ),
    description="batch is generated",
)
LABEL = UnitKind(
    verb="label",
    progress="labeled",
    dims=("batch",),
    groups=("labels", "labels_trajectory", "labels_clean"),
    description="batch is labeled",
)
ACCUMULATE = UnitKind(
    verb="accumulate",
    progress="accumulated",
    dims=("accumulator",),
    groups=("statistics",),
    description="number of accumulated units",
    sequential=True,
    applies_to=lambda study: study.capture.keep != "activations",
)
PROBE = UnitKind(
    verb="probe",
    progress="probed",
    dims=("step", "layer"),
    groups=("probes", "scores"),
    description="cell is probed",
)
EDIT = UnitKind(
    verb="edit",
    progress="done",
    dims=("site", "dose", "target", "batch"),
    groups=("interventions",),
    description="batch is edited",
    per_group=True,
)

STUDY_KINDS = (GENERATE, LABEL, ACCUMULATE, PROBE)
"""Kinds whose units are all complete in a run that has a summary.

Units of a registered extension may be left out of a run, and those of interventions follow later.
"""

EDIT_RECORDS = "edits"
"""Folder with the JSON records of each group of edits: its settings, and the summary if finished.

It is separate from the arrays, as Zarr warns of foreign files.
"""

UNIT_KINDS: dict[str, UnitKind] = {}
"""Registered kinds of units by verb, in the order in which a run carries them out."""


def register_unit_kind(kind: UnitKind) -> UnitKind:
    """Register a kind of unit of work; runs created afterwards contain its progress array.

    Raises:
        ValueError: another kind has the same verb, progress array or one of the groups.
    """
    for other in UNIT_KINDS.values():
        if kind.verb == other.verb or kind.progress == other.progress:
            raise ValueError(
                f"unit kind {kind.verb!r}: the kind {other.verb!r} has the same verb or progress "
                "array. Fix: choose a verb and a progress array that no other kind has"
            )
        if shared := set(kind.groups) & set(other.groups):
            raise ValueError(
                f"unit kind {kind.verb!r}: {other.verb!r} already writes group {shared.pop()!r}. "
                f"Fix: choose another group for {kind.verb!r}"
            )
    UNIT_KINDS[kind.verb] = kind
    return kind


for _kind in (*STUDY_KINDS, EDIT):
    register_unit_kind(_kind)


def kind_of_group(path: str) -> UnitKind | None:
    """Return the kind of unit of work that writes a group or array; None if none does."""
    group = path.partition("/")[0]
    return next((kind for kind in UNIT_KINDS.values() if group in kind.groups), None)


def is_progress_array(path: str) -> bool:
    """Return whether a path of a run is that of an array that records complete units of work.

    A property may have the name of such an array, so that ``labels/labeled`` holds its maps.
    """
    group, _, name = path.rpartition("/")
    top, _, below = group.partition("/")
    return any(
        name == kind.progress
        and (top in kind.groups and below != "" if kind.per_group else group == PROGRESS_GROUP)
        for kind in UNIT_KINDS.values()
    )


def kinds_in(study: Study) -> list[UnitKind]:
    """Return the kinds of units whose progress arrays are in the group ``progress`` of a run."""
    return [k for k in UNIT_KINDS.values() if not k.per_group and k.applies_to(study)]
