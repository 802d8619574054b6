"""What passes between tasks: small, JSON-able references; arrays go through the store."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ldmprobe_core.interventions.stages import edit_units
from ldmprobe_core.pipeline.statistics import run_accumulation_units
from ldmprobe_core.storage.run import Run


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True)


class RunRef(_Reference):
    """A run: where it is, and the identity it was given when it was laid out.

    The identity is part of every cache key, so that a run that was deleted and begun anew is not
    taken for done.
    """

    url: str
    identity: str


class BatchRef(_Reference):
    """One batch of a run, with its first and last sample."""

    run: RunRef
    number: int
    first: int
    last: int

    @property
    def place(self) -> tuple[int]:
        """Which unit of work it is."""
        return (self.number,)


class AccumulationRef(_Reference):
    """A few training batches to be added to a part's statistics, with first and last sample."""

    run: RunRef
    part: int
    number: int
    first: int
    last: int

    @property
    def place(self) -> tuple[int, int]:
        """Which unit of work it is."""
        return self.part, self.number


class CellRef(_Reference):
    """One (step, layer) of a run; steps count from 1."""

    run: RunRef
    step: int
    layer: str

    @property
    def place(self) -> tuple[int, str]:
        """Which unit of work it is."""
        return self.step, self.layer


class EditRef(_Reference):
    """One batch of an intervention's samples, to be edited towards one of its targets."""

    run: RunRef
    name: str
    target: int
    batch: int


def edits_of(run: RunRef, name: str) -> list[EditRef]:
    """References of every unit of an intervention."""
    units = edit_units(Run(run.url), name)
    return [EditRef(run=run, name=name, target=t, batch=b) for t, b in units]


def batches_of(run: RunRef) -> list[BatchRef]:
    """References of every stored batch, in order."""
    store = Run(run.url)
    return [
        BatchRef(run=run, number=i, first=members.start, last=members.stop - 1)
        for i, members in enumerate(store.study.batches(store.n_stored))
    ]


def accumulations_of(run: RunRef) -> list[list[AccumulationRef]]:
    """References of every unit of statistics, part by part; a part's go one after another."""
    return [
        [
            AccumulationRef(run=run, part=p, number=i, first=unit[0].start, last=unit[-1].stop - 1)
            for i, unit in enumerate(units)
        ]
        for p, units in enumerate(run_accumulation_units(Run(run.url)))
    ]


def cells_of(run: RunRef) -> list[CellRef]:
    """References of every cell, step by step."""
    store = Run(run.url)
    steps, layers = store.open("progress").sizes["step"], store.probe_inputs
    return [
        CellRef(run=run, step=step, layer=layer) for step in range(1, steps + 1) for layer in layers
    ]
