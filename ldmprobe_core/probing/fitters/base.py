"""Protocols of probes and fitters, and the data that a fitter receives.

A fitter receives the labels after they are assigned to samples, so the same fitter serves true
labels and, for the control, shuffled labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.conditions import ASSIGNMENTS
from ldmprobe_core.study.probe_kinds import ProbeKind
from ldmprobe_core.study.properties import Property, property_of


class Probe(Protocol):
    """Protocol of a fitted probe, which predicts a property from activations."""

    def predict(self, activations: np.ndarray) -> np.ndarray:
        """Predict a property (n, y, x) float64 from activations (n, y, x, channel).

        Probes of a mask predict foreground shares or logits; ``ProbeKind.mask_output`` says which.
        """
        ...


class Fitter(Protocol):
    """Protocol of an object that fits probes of one kind.

    Attributes:
        kind: record of the kind of probe: name, supported properties, whether it is linear.
    """

    kind: ProbeKind

    def fit(self, data: FitData) -> Probe:
        """Fit one cell's probe of one property to the true or the shuffled labels.

        Returns:
            the fitted probe; a `LinearProbe` if the kind is linear.
        """
        ...


@dataclass
class CellData:
    """Training and validation tokens of one cell (a layer at a step), with all labels to fit.

    Attributes:
        activations: (sample, y, x, channel) float16.
        labels: label maps of the same samples.
        train: indices of the samples to which probes are fitted, (n,).
        validation: indices of the samples on which the penalty is chosen, (n,).
        columns: label assignment and property of each label to fit.
        penalties: candidate relative penalties.
        seed: seed of the probes' initialisations and of the shuffled label assignment.
        stored_statistics: sufficient statistics of the training samples; None if `activations`
            contains those samples.
    """

    activations: np.ndarray
    labels: LabelSet
    train: np.ndarray
    validation: np.ndarray
    columns: list[tuple[str, str]]
    penalties: tuple[float, ...]
    seed: int
    stored_statistics: SufficientStatistics | None = None
    _shared: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tokens down and across."""
        return self.activations.shape[1], self.activations.shape[2]

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Training activations (token, channel) and labels (token, column).

        The label of a token is NaN if no pixel of its block was measured.
        """
        return self._rows(self.train)

    @cached_property
    def validation_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation activations (token, channel) and labels (token, column)."""
        return self._rows(self.validation)

    @cached_property
    def complete_columns(self) -> list[int]:
        """Indices in `columns` of the labels that were measured at every pixel.

        All their tokens weigh the same, so they can share one set of sufficient statistics.
        """
        return [
            column
            for column, (_, prop) in enumerate(self.columns)
            if self.labels.token_weights(prop, self.grid) is None
        ]

    @cached_property
    def statistics(self) -> SufficientStatistics:
        """Sufficient statistics of the training tokens, with the labels of `complete_columns`."""
        return self.stored_statistics or self._complete_statistics(*self.tokens)

    @cached_property
    def validation_statistics(self) -> SufficientStatistics:
        """Sufficient statistics of the validation tokens, with labels of `complete_columns`."""
        return self._complete_statistics(*self.validation_tokens)

    @cached_property
    def ridge_path(self) -> RidgePath:
        """Ridge solutions for the labels of `complete_columns`."""
        return RidgePath.from_statistics(self.statistics)

    def token_weights(self, column: int, members: np.ndarray) -> np.ndarray | None:
        """Count each token's measured pixels, (n, *grid); None if every pixel was measured."""
        assignment, prop = self.columns[column]
        weights = self.labels.token_weights(prop, self.grid)
        return None if weights is None else weights[self.label_owners(members, assignment)]

    def label_owners(self, members: np.ndarray, assignment: str) -> np.ndarray:
        """Return the index of the sample whose label each of the samples ``members`` gets."""
        return ASSIGNMENTS[assignment](members, self.seed)

    def shared(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute`, cached under `key` for all labels of the cell."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def _complete_statistics(self, x: np.ndarray, y: np.ndarray) -> SufficientStatistics:
        whole = len(self.complete_columns) == len(self.columns)
        return SufficientStatistics.from_tokens(x, y if whole else y[:, self.complete_columns])

    def _rows(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = self.activations[members].reshape(-1, self.activations.shape[-1])
        y = [
            self.labels.tokens(prop, self.grid)[self.label_owners(members, assignment)].ravel()
            for assignment, prop in self.columns
        ]
        return x, np.stack(y, axis=1)


@dataclass(frozen=True)
class FitData:
    """Training and validation data of one label of a cell, the argument of `Fitter.fit`.

    ``x``, ``y`` and ``weight`` contain only tokens with a measured pixel in their block.
    ``token_maps`` and ``full_maps`` have NaN where nothing was measured.

    Attributes:
        cell: tokens and all labels of the cell.
        column: index of this label in `cell.columns`.
    """

    cell: CellData
    column: int

    @property
    def assignment(self) -> str:
        """Name of the label assignment: ``true``, or ``shuffled`` for the control."""
        return self.cell.columns[self.column][0]

    @property
    def prop(self) -> Property:
        """Property that the probe predicts."""
        return property_of(self.cell.columns[self.column][1])

    @property
    def complete(self) -> bool:
        """True if the label was measured at every pixel, so that all tokens weigh the same."""
        return self.column in self.cell.complete_columns

    @property
    def x(self) -> np.ndarray:
        """Training activations (token, channel) float16."""
        return self._known(self.cell.tokens[0], self.cell.train)

    @property
    def y(self) -> np.ndarray:
        """Training labels (token,) float64: block means; for a mask, the share of foreground."""
        return self._known(self.cell.tokens[1][:, self.column], self.cell.train)

    @property
    def weight(self) -> np.ndarray | None:
        """Measured pixels of each training token, (token,) > 0; None if every pixel was."""
        return self._weights(self.cell.train)

    @property
    def validation_x(self) -> np.ndarray:
        """Validation activations (token, channel) float16."""
        return self._known(self.cell.validation_tokens[0], self.cell.validation)

    @property
    def validation_y(self) -> np.ndarray:
        """Validation labels (token,) float64: block means; for a mask, the share of foreground."""
        return self._known(self.cell.validation_tokens[1][:, self.column], self.cell.validation)

    @property
    def validation_weight(self) -> np.ndarray | None:
        """Measured pixels of each validation token, (token,) > 0; None if every pixel was."""
        return self._weights(self.cell.validation)

    @property
    def ridge_path(self) -> tuple[RidgePath, int]:
        """Ridge solutions on the training tokens, and the index of this label among them."""
        if self.complete:
            return self.cell.ridge_path, self.cell.complete_columns.index(self.column)
        statistics = self.cell.shared(
            f"statistics {self.column}",
            lambda: SufficientStatistics.from_tokens(self.x, self.y[:, None], self.weight),
        )
        return RidgePath.from_statistics(statistics), 0

    @property
    def activations(self) -> np.ndarray:
        """Training activations (sample, y, x, channel) float16."""
        return self.cell.activations[self.cell.train]

    @property
    def token_maps(self) -> np.ndarray:
        """Training labels as block means (n, y, x) float64."""
        return self.cell.labels.tokens(self.prop.name, self.cell.grid)[self._owners]

    @property
    def map_weights(self) -> np.ndarray | None:
        """Number of measured pixels of each token, (n, y, x); None if all were measured."""
        return self.cell.token_weights(self.column, self.cell.train)

    @property
    def full_maps(self) -> np.ndarray:
        """Training labels (n, Y, X) at the image's size in pixels: bool for a mask, else values."""
        return self.cell.labels.maps[self.prop.name][self._owners]

    def _weights(self, members: np.ndarray) -> np.ndarray | None:
        weights = self.cell.token_weights(self.column, members)
        return None if weights is None else weights[weights > 0]

    def _known(self, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Select the rows that belong to tokens with at least one measured pixel."""
        weights = self.cell.token_weights(self.column, members)
        return rows if weights is None else rows[weights.ravel() > 0]

    @property
    def _owners(self) -> np.ndarray:
        return self.cell.label_owners(self.cell.train, self.assignment)
