"""The probe and its controls as conditions; `derange` shuffles labels, seeded by ``prompts.seed``.

A condition is a network whose activations are read and an assignment of labels to samples; cells
are scored under every one, and controls should score low.  The
axis ``condition`` of stored scores lists the study's conditions by name, so a registered condition
needs no new layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def own_labels(members: np.ndarray, seed: int) -> np.ndarray:
    """Assign to every sample its own label; returns the indices unchanged."""
    return members


def derange(index: np.ndarray, seed: int) -> np.ndarray:
    """Assign to every sample the label of another one: a cyclic shift of a random order.

    A single sample keeps its own label.

    Args:
        index: (sample,) indices.
        seed: of the random order.

    Returns:
        (sample,) indices of the samples whose labels they get.
    """
    order = np.random.default_rng(seed).permutation(len(index))
    partner = np.empty(len(index), dtype=index.dtype)
    partner[order] = index[np.roll(order, 1)]
    return partner


ASSIGNMENTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "true": own_labels,
    "shuffled": derange,
}
"""Label assignments by name: functions of sample indices (sample,) and a seed that return, for each
sample, the index of the sample whose label it gets."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A network and a label assignment that a cell is probed and scored under.

    Attributes:
        name: on the axis ``condition`` of scores, and the key in ``controls`` of a study.
        title: name in text.
        column: heading in narrow tables.
        network: that is probed: ``trained``, or ``permuted`` with permuted weights.
        assignment: name of a label assignment in `ASSIGNMENTS`.
        always_stored: part of every run's axis, NaN where the control is off.
    """

    name: str
    title: str
    column: str
    network: str = "trained"
    assignment: str = "true"
    always_stored: bool = False


CONDITIONS: dict[str, Condition] = {}
"""Registered conditions by name, in the order of the axis; the first is the probe itself."""

PROBE_CONDITION = "probe"
"""Name of the condition of the probe itself: the trained network and true labels."""

_RESERVED = {"position", "latents", "enabled"}


def register_condition(
    new: Condition, assign: Callable[[np.ndarray, int], np.ndarray] | None = None
) -> Condition:
    """Add a condition; studies switch it on with ``controls.<name>: true``.

    Args:
        assign: function of its label assignment, if that is new; see `ASSIGNMENTS`.

    Raises:
        ValueError: the name is taken or reserved, or the assignment unknown or taken.
    """
    if new.name in CONDITIONS or new.name in _RESERVED:
        raise ValueError(f"condition {new.name!r}: the name is taken. Fix: choose another.")
    if assign is not None and new.assignment in ASSIGNMENTS:
        raise ValueError(
            f"assignment {new.assignment!r}: the name is taken. Fix: choose another, or leave the "
            "function out."
        )
    if assign is None and new.assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment {new.assignment!r}: unknown. Fix: give its function.")
    if assign is not None:
        ASSIGNMENTS[new.assignment] = assign
    CONDITIONS[new.name] = new
    return new


def controls() -> tuple[Condition, ...]:
    """Registered conditions other than the probe itself, in their order."""
    return tuple(condition for name, condition in CONDITIONS.items() if name != PROBE_CONDITION)


register_condition(
    Condition(name=PROBE_CONDITION, title="probe", column="probe", always_stored=True)
)
register_condition(
    Condition(
        name="shuffled_labels",
        title="shuffled labels",
        column="shuffled",
        assignment="shuffled",
        always_stored=True,
    )
)
register_condition(
    Condition(
        name="permuted_weights",
        title="permuted weights",
        column="permuted",
        network="permuted",
        always_stored=True,
    )
)
