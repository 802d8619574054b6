"""Kinds of units of work: which progress array records them, and which groups they write.

The one table that the layout of a run, its progress record, verification and repair read.  What a
unit computes is bound to its kind in `ldmprobe_core.pipeline.units`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    from ldmprobe_core.storage.schema import RunSchema

ARRAY_DIM = {"batch": "sample"}
"""Dimension of data arrays whose chunks follow a progress dimension of another name."""


@dataclass(frozen=True, kw_only=True)
class UnitKind:
    """One kind of unit of work, as a run's storage knows it.

    Attributes:
        verb: name of the kind, such as ``generate``.
        progress: array that records its complete units, such as ``generated``.
        dims: dimensions of that array; one index is one unit, or one sequence of units.
        groups: top-level groups whose chunks the units write.
        description: of the array.
        sequential: the units of an index run one after another, and the array counts them (int64);
            else it holds 0 or 1 (uint8).
        per_group: each group below ``groups`` has a progress array of its own, created together
            with that group; else the array lies in ``progress/`` and is created with the run.
        applies_to: whether a study has units of this kind.
        create_groups: creates the groups of a kind that the schema does not know, empty.
    """

    verb: str
    progress: str
    dims: tuple[str, ...]
    groups: tuple[str, ...]
    description: str
    sequential: bool = False
    per_group: bool = False
    applies_to: Callable[[Study], bool] = lambda study: True
    create_groups: Callable[[RunSchema], None] | None = None

    @property
    def dtype(self) -> str:
        """Type of the progress array."""
        return "int64" if self.sequential else "uint8"

    def index_of_chunk(
        self, path: str, dims: tuple[str, ...], chunk_index: tuple[int, ...], layers: list[str]
    ) -> tuple[int, ...]:
        """Index in the progress array of the units that write a chunk.

        Args:
            path: of the data array, such as ``probes/mid_block/weight``.
            dims: names of its dimensions.
            chunk_index: of the chunk in the array's chunk grid, which follows the units.
            layers: everything that is probed, in order; an array without the dimension ``layer``
                lies in its layer's group.
        """
        chunk = dict(zip(dims, chunk_index, strict=True))
        index = []
        for dim in self.dims:
            name = ARRAY_DIM.get(dim, dim)
            if name in chunk:
                index.append(chunk[name])
            else:
                if dim != "layer":
                    raise ValueError(f"{path} has no dimension {name}")
                index.append(layers.index(path.partition("/")[2].rpartition("/")[0]))
        return tuple(index)


GENERATE = UnitKind(
    verb="generate",
    progress="generated",
    dims=("batch",),
    groups=("images", "activations", "activations_permuted", "exact_maps"),
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
    dims=("target", "batch"),
    groups=("interventions",),
    description="batch is edited",
    per_group=True,
)

UNIT_KINDS: dict[str, UnitKind] = {}
"""Every kind of unit by its verb, in the order in which a run carries them out."""


def register_unit_kind(kind: UnitKind) -> UnitKind:
    """Add a kind of unit; runs that are created afterwards have its progress array.

    Raises:
        ValueError: its verb, its progress array or one of its groups is another kind's.
    """
    for other in UNIT_KINDS.values():
        if kind.verb == other.verb or kind.progress == other.progress:
            raise ValueError(f"unit kind {kind.verb!r}: {other.verb!r} has its verb or progress")
        if shared := set(kind.groups) & set(other.groups):
            raise ValueError(f"unit kind {kind.verb!r}: {other.verb!r} writes {shared.pop()!r}")
    UNIT_KINDS[kind.verb] = kind
    return kind


for _kind in (GENERATE, LABEL, ACCUMULATE, PROBE, EDIT):
    register_unit_kind(_kind)


def kind_of_group(path: str) -> UnitKind | None:
    """Kind of the units that write a group or array; None for coordinates' and samples' groups."""
    group = path.partition("/")[0]
    return next((kind for kind in UNIT_KINDS.values() if group in kind.groups), None)


def kinds_in(study: Study) -> list[UnitKind]:
    """Kinds whose progress arrays lie in a study's ``progress/``."""
    return [k for k in UNIT_KINDS.values() if not k.per_group and k.applies_to(study)]
