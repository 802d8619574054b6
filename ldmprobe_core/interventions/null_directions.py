"""Directions of null edits: control edits of equal norm, but in other directions.

A null edit changes each token by as much as the edit proper changed it in its own generation (the
same norm, and the same sign over the image), but in another direction.  What such an edit changes
in the image is an effect of disturbing the denoiser in this pattern, not of what the probe reads.
This module gives the directions, of any length; `edit.null_change` gives them the edit's sizes.
Only a direction in which the probe reads nothing, ``orthogonal``, is a null of "the denoiser uses
what the probe reads": a coherent random direction, and the direction of a probe of other images'
labels, still have a component along the reading.  Directions differ between samples, so that a mean
over samples is a mean over random directions, or over permutations of the labels, too.

The null ``own_label`` has another purpose: it is the edit proper, with the sample's own label as
its target, so it shows what editing costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ldmprobe_core.interventions.edit import Moments


@dataclass(frozen=True)
class NullContext:
    """Data of one layer at one step, from which directions of null edits are computed.

    Attributes:
        moments: mean and covariance of the training activations.
        weights: weights of all linear probes of the property that the run stores for the cell, and
            of the probe whose prediction an erasure removes, (probe, channel).
        permuted_directions: function that computes the edit directions of probes of the labels of
            other images, (draw, channel); it fits the probes.
        rng: random number generator; all cells of a layer have equal ones, so that null edits
            have about the same directions in all steps, as the edit proper has.
    """

    moments: Moments
    weights: np.ndarray
    permuted_directions: Callable[[], np.ndarray]
    rng: np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Null:
    """Null edit: a control edit of equal norm that should not move images to the target.

    Attributes:
        name: name on the axis ``condition`` of an intervention.
        title: description in tables.
        directions: function that computes the directions in a cell, (draw, channel), of which
            samples take one each in turn; None if the null edit is the edit proper with the
            sample's own label as its target.
    """

    name: str
    title: str
    directions: Callable[[NullContext], np.ndarray] | None


DIRECTIONS = 16
"""Number of random directions, and the most permutations of the labels, at each layer and step."""


def coherent_directions(cell: NullContext) -> np.ndarray:
    """Draw random directions from the normal distribution of the training activations.

    They are therefore mostly directions in which the activations vary.  The generator's numbers are
    multiplied by the symmetric root of the covariance.  This root is a continuous function of the
    covariance, so equal generators give similar directions in cells with similar covariances.

    Returns:
        (draw, channel) float64.
    """
    values, vectors = np.linalg.eigh(cell.moments.covariance)
    deviations = np.sqrt(np.maximum(values, 0.0))
    normal = cell.rng.standard_normal((DIRECTIONS, len(values)))
    return np.asarray((normal @ vectors * deviations) @ vectors.T)


def orthogonal_directions(cell: NullContext) -> np.ndarray:
    """Draw random directions along which no linear probe of the property changes its prediction.

    They are coherent random directions without their component in the span of the probes' weights.

    Returns:
        (draw, channel) float64.

    Raises:
        ValueError: there are as many probes as channels, so that no direction is orthogonal to all.
    """
    probes, channels = cell.weights.shape
    if probes >= channels:
        raise ValueError(
            f"null edit orthogonal: {probes} probes of the property read all {channels} channels, "
            "so no direction is orthogonal to them. Fix: use fewer kinds of probes, or another "
            "null edit."
        )
    directions = coherent_directions(cell)
    for _ in range(2):  # The second pass removes the rounding error of the first.
        basis, _ = np.linalg.qr(cell.weights.T)
        directions = directions - (directions @ basis) @ basis.T
    return directions


NULLS = {
    null.name: null
    for null in (
        Null(
            name="orthogonal",
            title="orthogonal to what probes read",
            directions=orthogonal_directions,
        ),
        Null(name="coherent", title="random direction", directions=coherent_directions),
        Null(
            name="permuted",
            title="probe of other images' labels",
            directions=lambda cell: cell.permuted_directions(),
        ),
        Null(name="own_label", title="own label as target", directions=None),
    )
}
"""Null edits by name, in the order in which they are carried out."""
