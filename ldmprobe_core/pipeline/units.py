"""Operations on units of work: list those of a run, run one, and tell whether it is done.

Storage's side of a kind (progress array, groups) is `ldmprobe_core.storage.units.UnitKind`.
Adding a kind takes `register_unit_kind` there and `register_units` here; the layout, verification
and repair, Prefect's tasks and `carry_out` then include it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.pipeline.statistics import run_accumulation_units
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE, GENERATE, LABEL, PROBE, UnitKind

Index = tuple[int | str, ...]
"""Index of a unit within its kind, such as ``(batch,)`` or ``(step from 1, layer)``."""


@dataclass(frozen=True)
class Unit:
    """One unit of work of a run.

    Attributes:
        index: of the unit within its kind; positional arguments of `UnitOperations.carry_out`.
        title: for display, such as ``batch 0003 · samples 24-31``.
    """

    index: Index
    title: str


@dataclass(frozen=True, kw_only=True)
class UnitOperations:
    """Functions that list, run and check the units of one kind.

    Attributes:
        kind: the kind, as storage knows it.
        list_units: of a run, in an order in which they may run one after another.  The units of a
            sequential kind depend on the one before with the same first number in their index.
        carry_out: runs one unit, given the run's URL and the unit's index.  A unit that is done is
            left as it is.  Returns counts and seconds.
        is_done: whether the run's progress record has the unit, given the run and the index.
    """

    kind: UnitKind
    list_units: Callable[..., list[Unit]]
    carry_out: Callable[..., dict[str, Any]]
    is_done: Callable[..., bool]


UNITS: dict[str, UnitOperations] = {}
"""Operations of every kind of unit by its verb, in the order in which a run carries them out."""


def register_units(operations: UnitOperations) -> UnitOperations:
    """Bind functions to a kind of unit.

    Raises:
        ValueError: the kind has functions already.
    """
    verb = operations.kind.verb
    if verb in UNITS:
        raise ValueError(f"units {verb!r}: registered twice")
    UNITS[verb] = operations
    return operations


def carry_out_units(run: Run) -> None:
    """Run every unit of a study one after another in this thread; done units are skipped."""
    for operations in list(UNITS.values()):
        if operations.kind.per_group or not operations.kind.applies_to(run.study):
            continue
        for unit in operations.list_units(run):
            if not operations.is_done(run, *unit.index):
                operations.carry_out(run.url, *unit.index)


def _batches(verb: str) -> Callable[[Run], list[Unit]]:
    def list_units(run: Run) -> list[Unit]:
        return [
            Unit((i,), f"{verb} {i:04d} · samples {members.start}-{members.stop - 1}")
            for i, members in enumerate(run.study.batches(run.n_stored))
        ]

    return list_units


def _accumulations(run: Run) -> list[Unit]:
    return [
        Unit(
            (accumulator, number),
            f"part {accumulator} unit {number:04d} · "
            f"samples {batches[0].start}-{batches[-1].stop - 1}",
        )
        for accumulator, units in enumerate(run_accumulation_units(run))
        for number, batches in enumerate(units)
    ]


def _is_accumulated(run: Run, accumulator: int, number: int) -> bool:
    return run.progress.count(ACCUMULATE, accumulator) > number


def _cells(run: Run) -> list[Unit]:
    return [
        Unit((step, layer), f"cell step {step:02d} · {layer}")
        for step in range(1, run.open("progress").sizes["step"] + 1)
        for layer in run.probe_inputs
    ]


def _is_probed(run: Run, step: int, layer: str) -> bool:
    return run.progress.is_done(PROBE, step - 1, run.probe_inputs.index(layer))


register_units(
    UnitOperations(
        kind=GENERATE,
        list_units=_batches("batch"),
        carry_out=generate_batch,
        is_done=lambda run, batch: run.progress.is_done(GENERATE, batch),
    )
)
register_units(
    UnitOperations(
        kind=LABEL,
        list_units=_batches("label"),
        carry_out=label_batch,
        is_done=lambda run, batch: run.progress.is_done(LABEL, batch),
    )
)
register_units(
    UnitOperations(
        kind=ACCUMULATE,
        list_units=_accumulations,
        carry_out=accumulate_unit,
        is_done=_is_accumulated,
    )
)
register_units(
    UnitOperations(
        kind=PROBE,
        list_units=_cells,
        carry_out=probe_cell,
        is_done=_is_probed,
    )
)
