"""Estimate of the time that the remaining units of a flow take.

The functions here read no clock, so that tests can call them with simulated times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

_FEWEST = 3
"""Least number of timed units of equal cost for which their own median time is used."""


@dataclass(frozen=True)
class UnitCost:
    """Expected cost of one unit of work.

    Attributes:
        cost: expected time, relative to the other units of the flow; the scale is arbitrary.
        is_done: whether the unit was complete before the flow started.
    """

    cost: float
    is_done: bool = False


class TimeLeft:
    """Estimate of the seconds until a stage, and the whole flow, end.

    Units of one stage that have the same cost are expected to take the median of the seconds that
    such units took.  Units of another cost take that in proportion to their cost, and so do the
    units of stages of which none has ended yet.  The first unit of each worker also loads the
    models, so it does not count as soon as there are others.

    Args:
        stages: expected cost of each unit by its name, by stage, in the order of the stages.
        workers: number of units that are carried out at the same time, at least.
        closing: cost of the work after the last stage, which is one unit.
        started: time at which the first stage begins, in seconds on any clock.
    """

    def __init__(
        self,
        stages: Mapping[str, Mapping[str, UnitCost]],
        workers: int = 1,
        closing: float = 0.0,
        started: float = 0.0,
    ) -> None:
        self._costs = {
            stage: {name: unit.cost for name, unit in units.items()}
            for stage, units in stages.items()
        }
        # Units that were complete before the flow started are not part of its work.
        self._todo = {
            stage: {name for name, unit in units.items() if not unit.is_done}
            for stage, units in stages.items()
        }
        self._measured: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
        self._workers, self._closing = workers, closing
        self._started = self._ended = started
        self._busy = dict.fromkeys(stages, 0.0)
        self._carried_out = dict.fromkeys(stages, 0)
        # Time at which a stage began, if all stages before it were complete then.
        self._began: dict[str, float | None] = {}

    def record(self, stage: str, name: str, seconds: float, now: float) -> None:
        """Record the end of a unit.

        Args:
            stage: stage of the unit.
            name: name of the unit.
            seconds: time that the unit took; 0 if it was complete already.
            now: present time, on the same clock as ``started``.
        """
        if name in self._todo[stage] and stage not in self._began:
            names = list(self._todo)
            is_next = not any(self._todo[other] for other in names[: names.index(stage)])
            self._began[stage] = now - seconds if is_next else None
        if seconds > 0:
            cost = self._costs[stage][name]
            self._measured[stage].append((cost, seconds))
            if name in self._todo[stage]:
                self._busy[stage] += seconds
                self._carried_out[stage] += 1
        self._todo[stage].discard(name)
        self._ended = now

    def of_stage(self, stage: str, now: float) -> float | None:
        """Return the expected seconds until a stage ends, None before any unit has ended."""
        seconds = self._work(stage)
        return None if seconds is None else self._from_now(seconds, now)

    def of_flow(self, now: float) -> float | None:
        """Return the expected seconds until the flow ends, None before any unit has ended."""
        work = [self._work(stage) for stage in self._costs]
        rate = self._rate(None)
        if rate is None:
            return None
        return self._from_now(sum(part or 0.0 for part in work), now) + self._closing * rate

    def _from_now(self, work: float, now: float) -> float:
        """Subtract the time since the last unit ended from the seconds that were left then."""
        return max(work - (now - self._ended), 0.0)

    def _at_once(self, stage: str) -> float:
        """Return the number of units of a stage that are carried out at once, on average.

        It may be smaller than the number of workers, because the workflow system takes time of its
        own between units.
        """
        began = self._began.get(stage)
        if began is not None and self._ended > began:
            at_once, ended = self._busy[stage] / (self._ended - began), self._carried_out[stage]
            if at_once and ended >= _FEWEST * self._workers:
                return at_once
        elapsed = self._ended - self._started
        return max(float(self._workers), sum(self._busy.values()) / elapsed if elapsed else 0.0)

    def _work(self, stage: str) -> float | None:
        """Return the seconds that the remaining units of a stage take.

        When a unit ends, those on the other workers are half done, on average.
        """
        if (rate := self._rate(stage)) is None:
            return None
        by_cost: dict[float, list[float]] = {}
        for cost, seconds in self._typical(stage):
            by_cost.setdefault(cost, []).append(seconds)
        expected = [
            median(by_cost[cost]) if len(by_cost.get(cost, ())) >= _FEWEST else cost * rate
            for cost in (self._costs[stage][name] for name in self._todo[stage])
        ]
        in_progress = min(self._workers - 1, len(expected)) if self._measured[stage] else 0
        if not expected:
            return 0.0
        return sum(expected) * (1 - in_progress / 2 / len(expected)) / self._at_once(stage)

    def _rate(self, stage: str | None) -> float | None:
        """Return the median seconds per cost of a stage's units, or of all units if it has few."""
        measured = self._typical(stage) if stage else []
        if len(measured) < _FEWEST:
            measured = [pair for name in self._measured for pair in self._typical(name)]
        return median(seconds / cost for cost, seconds in measured) if measured else None

    def _typical(self, stage: str) -> list[tuple[float, float]]:
        """Return (cost, seconds) of ended units, without the first ones, which load the models."""
        measured = self._measured[stage]
        return measured[min(self._workers, len(measured) // 2) :]
