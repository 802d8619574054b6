"""References to runs and units that tasks exchange as JSON; arrays go through the store."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

import ldmprobe_core.interventions.stages  # noqa: F401  (registers the units of interventions)
from ldmprobe_core.pipeline.units import UNITS, Index
from ldmprobe_core.storage.run import Run


class RunRef(BaseModel):
    """Reference to a run: its URL, and the identity that it got when it was created.

    The identity is part of every cache key: a run that was deleted and created again is another
    run, whose units are not done.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    identity: str


class UnitRef(BaseModel):
    """Reference to one unit of work of a run.

    Attributes:
        verb: kind of the unit, a key of `ldmprobe_core.pipeline.units.UNITS`.
        index: of the unit within its kind.
        title: name of its task run.
    """

    model_config = ConfigDict(frozen=True)

    run: RunRef
    verb: str
    index: Index
    title: str

    @property
    def is_done(self) -> bool:
        """Whether the run's progress record has the unit."""
        return UNITS[self.verb].is_done(Run(self.run.url), *self.index)


def units_of(run: RunRef, verb: str, *scope: str) -> list[UnitRef]:
    """References of every unit of one kind, in order.

    Args:
        scope: name of the intervention, for the verb ``edit``.
    """
    return [
        UnitRef(run=run, verb=verb, index=unit.index, title=unit.title)
        for unit in UNITS[verb].list_units(Run(run.url), *scope)
    ]
