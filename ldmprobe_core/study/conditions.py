"""Registry of the conditions for fitting probes: ``probe`` (no control), and all controls.

A condition combines a network, whose activations are probed, with an assignment of labels to
samples.  Each cell (a sampler step and a layer) is scored under every condition of the study, and
controls should score low.  The axis ``condition`` of stored scores lists the conditions by name, so
registering a condition does not change the layout of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def own_labels(members: np.ndarray, seed: int) -> np.ndarray:
    """Assign to every sample its own label: return the sample indices unchanged."""
    return members


def derange(index: np.ndarray, seed: int) -> np.ndarray:
    """Assign to every sample the label of another sample, by a cyclic shift of a random order.

    A single sample keeps its own label.

    Args:
        index: (sample,) indices of the samples.
        seed: seed of the random order; a study uses ``prompts.seed``.

    Returns:
        (sample,) for each sample, the index of the sample whose label it gets.
    """
    order = np.random.default_rng(seed).permutation(len(index))
    partner = np.empty(len(index), dtype=index.dtype)
    partner[order] = index[np.roll(order, 1)]
    return partner


ASSIGNMENTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "true": own_labels,
    "shuffled": derange,
}
"""Functions that assign labels to samples, by name of the label assignment.

Each is a function of sample indices (sample,) and a seed.  It returns, for each sample, the index
of the sample whose label it gets.
"""


@dataclass(frozen=True)
class LabelColumn:
    """Column of one property's labels, as assigned to samples (true or, for example, shuffled).

    Attributes:
        assignment: name of a label assignment in `ASSIGNMENTS`.
        prop: name of the property.
        draw: number of the draw of a repeated assignment, from 0.
    """

    assignment: str
    prop: str
    draw: int = 0

    def owners(self, members: np.ndarray, seed: int) -> np.ndarray:
        """Return, for each of the samples ``members``, the index of the sample whose label it gets.

        Args:
            members: indices of samples, (sample,).
            seed: seed of the study, ``prompts.seed``.
        """
        # Seeds are below 2**64, so each pair (seed, draw) gives a different seed.
        return ASSIGNMENTS[self.assignment](members, seed + (self.draw << 64))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Condition of a probe: the network that it reads, and the assignment of labels to images.

    Attributes:
        name: name on the axis ``condition`` of scores, and key in ``controls`` of a study.
        title: name of the condition in text.
        column: heading of its column in narrow tables.
        network: network that is probed: ``trained``, or ``permuted``, whose weights are permuted or
            random.
        assignment: name of a label assignment in `ASSIGNMENTS`.
        repeated: True fits the condition to several draws of its assignment
            (``controls.permutations`` of a study), whose scores are averaged.
        always_stored: True puts the condition on the axis of every run, with NaN as its scores if
            the study has switched it off.
    """

    name: str
    title: str
    column: str
    network: str = "trained"
    assignment: str = "true"
    repeated: bool = False
    always_stored: bool = False


CONDITIONS: dict[str, Condition] = {}
"""Registered conditions by name, in the order of the axis ``condition``; the probe is first."""

PROBE_CONDITION = "probe"
"""Name of the condition of the probe itself: the trained network with true labels."""

_RESERVED = {
    "position", "latents", "clean_pixels", "prompt", "same_prompt", "permutations", "enabled",
}  # fmt: skip


def register_condition(
    new: Condition, assign: Callable[[np.ndarray, int], np.ndarray] | None = None
) -> Condition:
    """Register a control: a network, and an assignment of labels to its activations.

    Studies switch it on with ``controls.<name>: true``.

    Args:
        new: condition to register.
        assign: function of the condition's label assignment, if that is not in `ASSIGNMENTS` yet.

    Raises:
        ValueError: the name is taken or reserved, or the assignment is unknown or taken.
    """
    if new.name in CONDITIONS or new.name in _RESERVED:
        raise ValueError(f"condition {new.name!r}: the name is taken. Fix: choose another.")
    if assign is not None and new.assignment in ASSIGNMENTS:
        raise ValueError(
            f"assignment {new.assignment!r}: the name is taken. Fix: choose another, or "
            "leave out `assign`, to use the registered assignment."
        )
    if assign is None and new.assignment not in ASSIGNMENTS:
        raise ValueError(
            f"assignment {new.assignment!r}: no such assignment is registered. Fix: pass its "
            "function as `assign`."
        )
    if assign is not None:
        ASSIGNMENTS[new.assignment] = assign
    CONDITIONS[new.name] = new
    return new


def controls() -> tuple[Condition, ...]:
    """Return the registered conditions except ``probe``, in the order of registration."""
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
        repeated=True,
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
register_condition(
    Condition(
        name="random_weights",
        title="random initial weights",
        column="random",
        network="permuted",
    )
)
