"""Functions that list, compute and check the units of work of a run, for each kind of unit.

The arrays and groups that a kind of unit writes are described by
`ldmprobe_core.storage.units.UnitKind`.  To add a kind, register it there with
`register_unit_kind`, and register its functions here with `register_units`.  The layout of runs,
verification, repair and the Prefect tasks then include it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.environments import record_environment
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.parallel.cells import probe_cell_in_parallel
from ldmprobe_core.pipeline.statistics import run_accumulation_units
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE, GENERATE, LABEL, PROBE, UnitKind

Index = tuple[int | str, ...]
"""Index of a unit within its kind, such as ``(batch,)`` or ``(step from 1, layer)``."""


@dataclass(frozen=True)
class Unit:
    """One unit of work of a run, such as the generation of one batch.

    Attributes:
        index: position of the unit among those of its kind; its elements are the arguments of
            `UnitOperations.carry_out` after the URL.
        title: text for display, such as ``batch 0003 · samples 24-31``.
    """

    index: Index
    title: str


@dataclass(frozen=True, kw_only=True)
class UnitOperations:
    """Functions that list the units of one kind, compute one, and check whether it is complete.

    Attributes:
        kind: kind of the units.
        list_units: function from a run to its units, in an order in which they can be computed.  If
            the kind is sequential, each unit depends on the previous unit whose index has the same
            first element.
        carry_out: function that computes one unit, called as ``carry_out(url, *index)``.  It skips
            a unit that is complete.  It returns ``seconds`` and counts, such as ``bytes``.
        is_done: function that returns whether a unit is complete, called as
            ``is_done(run, *index)``.
    """

    kind: UnitKind
    list_units: Callable[..., list[Unit]]
    carry_out: Callable[..., dict[str, Any]]
    is_done: Callable[..., bool]


UNITS: dict[str, UnitOperations] = {}
"""Functions for each kind of unit, by the kind's verb, in the order in which a run needs them."""


def register_units(operations: UnitOperations) -> UnitOperations:
    """Register the functions that list, compute and check the units of one kind.

    Raises:
        ValueError: functions for this kind are registered already.
    """
    verb = operations.kind.verb
    if verb in UNITS:
        raise ValueError(
            f"units {verb!r}: the name is taken. Fix: register the kind of unit under another verb."
        )
    UNITS[verb] = operations
    return operations


def carry_out_unit(verb: str, url: str, *index: int | str) -> dict[str, Any]:
    """Compute one unit of a run, and record the versions and the device that it is computed with.

    Args:
        verb: kind of the unit.
        url: URL of the run.
        index: index of the unit.

    Returns:
        the result of `UnitOperations.carry_out`, which skips a unit that is complete.
    """
    operations = UNITS[verb]
    result = operations.carry_out(url, *index)
    if result["seconds"] and not operations.kind.per_group:
        record_environment(Run(url), verb)
    return result


def carry_out_units(run: Run) -> None:
    """Compute all units of a run one after another in this thread; complete units are skipped."""
    for operations in list(UNITS.values()):
        if operations.kind.per_group or not operations.kind.applies_to(run.study):
            continue
        for unit in operations.list_units(run):
            if not operations.is_done(run, *unit.index):
                carry_out_unit(operations.kind.verb, run.url, *unit.index)


def _batches(verb: str) -> Callable[[Run], list[Unit]]:
    """Return a function that lists one unit per batch, with a title that begins with `verb`."""

    def list_units(run: Run) -> list[Unit]:
        return [
            Unit((i,), f"{verb} {i:04d} · samples {members.start}-{members.stop - 1}")
            for i, members in enumerate(run.study.batches(run.n_stored))
        ]

    return list_units


def _accumulations(run: Run) -> list[Unit]:
    """List the units of all accumulators; each unit adds a few batches to the sums."""
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
    """Return whether an accumulator's sums include its unit ``number`` (from 0)."""
    return run.progress.count(ACCUMULATE, accumulator) > number


def _cells(run: Run) -> list[Unit]:
    """List one unit for each step and probe input."""
    return [
        Unit((step, layer), f"cell step {step:02d} · {layer}")
        for step in range(1, run.open("progress").sizes["step"] + 1)
        for layer in run.probe_inputs
    ]


def _is_probed(run: Run, step: int, layer: str) -> bool:
    """Return whether a layer's probes at a step (from 1) are fitted and scored."""
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
        carry_out=probe_cell_in_parallel,
        is_done=_is_probed,
    )
)
