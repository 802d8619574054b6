"""References to runs and units of work, which Prefect tasks exchange as JSON.

Tasks exchange only these small references.  They read and write arrays in the store.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

import ldmprobe_core.interventions.stages  # noqa: F401  (registers the units of interventions)
from ldmprobe_core.pipeline.units import UNITS, Index
from ldmprobe_core.storage.run import Run


class RunRef(BaseModel):
    """Reference to a run: its URL, and the random identity that it received when it was created.

    The identity is part of every cache key.  If a run is deleted and created again at the same URL,
    it therefore does not reuse cached results of the deleted run.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    identity: str


class UnitRef(BaseModel):
    """Reference to one unit of work of a run, which tasks exchange as JSON.

    Attributes:
        run: reference to the run.
        verb: kind of the unit, a key of `ldmprobe_core.pipeline.units.UNITS`.
        index: index of the unit among the units of its kind.
        title: name of the unit's task run in Prefect.
    """

    model_config = ConfigDict(frozen=True)

    run: RunRef
    verb: str
    index: Index
    title: str

    @property
    def is_done(self) -> bool:
        """True if the run's progress record marks the unit as complete."""
        return UNITS[self.verb].is_done(Run(self.run.url), *self.index)


def units_of(run: RunRef, verb: str, *scope: str) -> list[UnitRef]:
    """Return references to all units of one kind, in order.

    Args:
        run: reference to the run.
        verb: kind of the units, a key of `ldmprobe_core.pipeline.units.UNITS`.
        scope: name of the intervention if the verb is ``edit``; nothing for other verbs.
    """
    return [
        UnitRef(run=run, verb=verb, index=unit.index, title=unit.title)
        for unit in UNITS[verb].list_units(Run(run.url), *scope)
    ]
