"""Functions that change the activations of a batch, one for each method and null edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.interventions.edit import (
    EditDirection,
    edit_by_gradient_descent,
    target_reading,
)
from ldmprobe_core.interventions.editor import Change
from ldmprobe_core.interventions.spec import ERASURES, Intervention
from ldmprobe_core.probing.block_scores import block_means


@dataclass
class EditLog:
    """Record of the sizes of a batch's edits, for each layer and step.

    Attributes:
        readings: root mean square over the tokens of the change of the probe's prediction that is
            made, by the edit proper or by the null edit, in standard deviations of the prediction;
            (sample,) for each cell.
        sizes: root mean square over the tokens of the norm of the change of the activations, in
            norms of the least edit that changes the prediction by one standard deviation, likewise.
            For an exact edit it equals its reading.
        fields: field of each cell's edit (`EditDirection.field_of`), by step and layer.
    """

    readings: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    fields: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def add(self, step: int, layer: str, direction: EditDirection, change: Tensor) -> None:
        """Record the change of the activations of one layer at one step, (n, y, x, channel)."""
        self.fields[step, layer] = direction.field_of(change).cpu()
        reading = (change @ direction.weight).square().mean((1, 2)).sqrt()
        self.readings.append((reading / direction.deviation).cpu())
        size = change.square().sum(-1).mean((1, 2)).sqrt() / direction.step.norm()
        self.sizes.append((size / direction.deviation).cpu())

    def mean_reading(self, samples: int) -> np.ndarray:
        """Mean recorded change of the prediction over layers and steps, (sample,) float64.

        It is NaN if no change is recorded.
        """
        return _mean_over_cells(self.readings, samples)

    def mean_size(self, samples: int) -> np.ndarray:
        """Mean recorded norm of the edits over layers and steps, (sample,) float64.

        It is NaN if no edit is recorded.
        """
        return _mean_over_cells(self.sizes, samples)


def _mean_over_cells(values: list[Tensor], samples: int) -> np.ndarray:
    """Average a list of arrays (sample,), one per layer and step; NaN if the list is empty."""
    if not values:
        return np.full(samples, np.nan)
    return torch.stack(values).double().mean(0).numpy()


def make_change(
    spec: Intervention,
    kind: str,
    direction_of: Callable[[int, str], EditDirection],
    targets: np.ndarray,
    dose: float = float("nan"),
    log: EditLog | None = None,
) -> Change:
    """Build the `Editor` function for the edit proper, the null edit ``own_label`` or an erasure.

    Args:
        spec: method, strength and confidence of the edit.
        kind: kind of the probes in the edit directions.
        direction_of: function that returns the edit direction of a cell, from its step and layer.
        targets: target maps (n, Y, X) at the image's size; for the null ``own_label``, the labels.
            Erasures do not use them.
        dose: dose of an exact edit (`EditDirection.at_dose`); NaN leaves the target as it is.
        log: log to which the sizes of the edits are added.
    """
    mask = spec.edited_property.is_mask
    maps = targets.astype(np.float64)
    readings: dict[tuple[int, int], Tensor] = {}

    def goal(direction: EditDirection, tokens: Tensor) -> Tensor:
        """Compute the target prediction (n, y, x) of an exact edit or an erasure."""
        if spec.method in ERASURES:
            return direction.mean.expand(tokens.shape[:3])
        grid = (tokens.shape[1], tokens.shape[2])
        if grid not in readings:
            share = block_means(maps, grid)
            readings[grid] = torch.from_numpy(
                target_reading(share, kind, mask, spec.confidence)
            ).float()
        reading = readings[grid].to(tokens.device)
        return reading if np.isnan(dose) else direction.at_dose(reading, dose)

    def change(step: int, layer: str, tokens: Tensor) -> Tensor:
        direction = direction_of(step, layer).to(tokens.device)
        if spec.method == "adam":
            edited = edit_by_gradient_descent(
                tokens, torch.from_numpy(maps).float().to(tokens.device), direction, mask,
                spec.iterations, spec.learning_rate,
            )  # fmt: skip
        else:
            edited = direction.exact(tokens, goal(direction, tokens), spec.strength)
        if log is not None:
            log.add(step, layer, direction, edited - tokens)
        return edited

    return change


def make_null_change(
    direction_of: Callable[[int, str], EditDirection],
    null: str,
    samples: list[int],
    edit: EditLog,
    log: EditLog,
) -> Change:
    """Build the `Editor` function for a null edit along directions other than the edit direction.

    The null edit adds what the edit proper added in the same cell of its own generation, with the
    same norm and sign at every token, but in another direction.  So both generations are disturbed
    equally in every cell, although their activations drift apart.

    Args:
        direction_of: function that returns the edit direction of a cell, from its step and layer.
        null: name of the directions in `EditDirection.nulls`.
        samples: indices of the samples of the batch, which determine the direction of each.
        edit: log of the edit proper of the same samples.
        log: log to which the sizes of the null edits are added.
    """

    def change(step: int, layer: str, tokens: Tensor) -> Tensor:
        direction = direction_of(step, layer).to(tokens.device)
        field = edit.fields[step, layer].to(tokens.device)
        added = direction.null_change(field, null, samples)
        log.add(step, layer, direction, added)
        return tokens + added

    return change


def patch_from(donors: Callable[[int, str], np.ndarray]) -> Change:
    """Build the `Editor` function that replaces activations by those of other samples.

    Args:
        donors: function from step and layer to the activations (n, y, x, channel) that replace
            those of the batch.
    """

    def change(step: int, layer: str, tokens: Tensor) -> Tensor:
        return torch.from_numpy(donors(step, layer)).to(tokens)

    return change
