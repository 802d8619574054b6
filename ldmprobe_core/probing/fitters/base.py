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
from ldmprobe_core.probing.position import position_means, position_term, token_positions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.conditions import LabelColumn
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
        """Fit the probe of one property, at one layer and step, to true or shuffled labels.

        Returns:
            the fitted probe; a `LinearProbe` if the kind is linear.
        """
        ...


@dataclass
class CellData:
    """Training and validation tokens of one cell (a layer at a step), with all their labels.

    Attributes:
        activations: (sample, y, x, channel) as stored.
        labels: label maps of the same samples.
        train: indices of the samples to which probes are fitted, (n,).
        validation: indices of the samples on which the penalty is chosen, (n,).
        columns: labels to fit.
        penalties: candidate relative penalties.
        seed: seed of the probes' initialisations and of the label assignments.
        stored_statistics: sufficient statistics of the training samples; None if `activations`
            contains those samples.
    """

    activations: np.ndarray
    labels: LabelSet
    train: np.ndarray
    validation: np.ndarray
    columns: tuple[LabelColumn, ...]
    penalties: tuple[float, ...]
    seed: int
    stored_statistics: SufficientStatistics | None = None
    _shared: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.activations.shape[1], self.activations.shape[2]

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Training activations (token, channel) and labels (token, column).

        The labels are in the order of `columns`.  The label of a token is NaN if no pixel of its
        block was measured.
        """
        return self._rows(self.train)

    @cached_property
    def validation_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation activations (token, channel) and labels (token, column), like `tokens`."""
        return self._rows(self.validation)

    @cached_property
    def complete_columns(self) -> list[int]:
        """Indices of the label columns whose maps were measured at every pixel.

        All their tokens weigh the same, so they can share one set of sufficient statistics.
        """
        return [
            column
            for column, label in enumerate(self.columns)
            if self.labels.token_weights(label.prop, self.grid) is None
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
    def positions(self) -> np.ndarray:
        """Position index of every token, (y, x); see `ldmprobe_core.probing.position`."""
        return token_positions(self.grid)

    def position_means(self, columns: list[int]) -> np.ndarray:
        """Training mean of the given label columns at each position, (position, column)."""
        props = [self.columns[column].prop for column in columns]
        return np.stack(
            [position_means(self.labels.mean_tokens(prop, self.grid)) for prop in props], axis=1
        )

    def without_positions(
        self, statistics: SufficientStatistics, columns: list[int]
    ) -> SufficientStatistics:
        """Subtract the training mean at each position from the labels in sufficient statistics.

        Args:
            statistics: statistics of the labels themselves.
            columns: indices in `columns` of these labels.
        """
        return statistics.less_positions(self.position_means(columns))

    def ridge_path(self, position_term: bool) -> RidgePath:
        """Return the ridge solutions for the labels of `complete_columns`, cached for later calls.

        Args:
            position_term: whether to subtract the training mean at each position from the labels.
        """

        def compute() -> RidgePath:
            statistics = self.statistics
            if position_term:
                statistics = self.without_positions(statistics, self.complete_columns)
            return RidgePath.from_statistics(statistics)

        return self.shared(f"ridge path, position term {position_term}", compute)

    def token_weights(self, column: int, members: np.ndarray) -> np.ndarray | None:
        """Count the measured pixels of each token, (n, *grid); None if all pixels were measured."""
        weights = self.labels.token_weights(self.columns[column].prop, self.grid)
        return None if weights is None else weights[self.label_owners(members, column)]

    def label_owners(self, members: np.ndarray, column: int) -> np.ndarray:
        """Return, for each sample in ``members``, the index of the sample whose label it gets."""
        return self.columns[column].owners(members, self.seed)

    def shared(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute`, which is called once and cached under `key`."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def _complete_statistics(self, x: np.ndarray, y: np.ndarray) -> SufficientStatistics:
        """Compute statistics of the tokens ``x`` and their labels in `complete_columns`."""
        whole = len(self.complete_columns) == len(self.columns)
        return SufficientStatistics.from_tokens(
            x,
            y if whole else y[:, self.complete_columns],
            positions=np.resize(self.positions, len(x)),
            n_positions=self.positions.max() + 1,
        )

    def _rows(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return activations (token, channel) and labels (token, column) of samples."""
        x = self.activations[members].reshape(-1, self.activations.shape[-1])
        y = [
            self.labels.tokens(label.prop, self.grid)[self.label_owners(members, column)].ravel()
            for column, label in enumerate(self.columns)
        ]
        return x, np.stack(y, axis=1)


@dataclass(frozen=True)
class FitData:
    """Training and validation data for one probe: one label, at one layer and step.

    ``x``, ``y`` and ``weight`` contain only tokens with a measured pixel in their block.
    ``token_maps`` and ``full_maps`` have NaN where nothing was measured.

    Attributes:
        cell: tokens and all labels of the cell.
        column: index of this label in `cell.columns`.
        kind: kind of probe to fit.
    """

    cell: CellData
    column: int
    kind: ProbeKind

    @property
    def assignment(self) -> str:
        """Name of the label assignment, such as ``true`` or ``shuffled``."""
        return self.cell.columns[self.column].assignment

    @property
    def prop(self) -> Property:
        """Property that the probe predicts."""
        return property_of(self.cell.columns[self.column].prop)

    @property
    def complete(self) -> bool:
        """True if the label was measured at every pixel, so that all tokens weigh the same."""
        return self.column in self.cell.complete_columns

    @property
    def x(self) -> np.ndarray:
        """Training activations (token, channel) as stored."""
        return self._known(self.cell.tokens[0], self.cell.train)

    @property
    def y(self) -> np.ndarray:
        """Training labels (token,) float64: block means; for a mask, the share of foreground."""
        return self._known(self.cell.tokens[1][:, self.column], self.cell.train)

    @property
    def weight(self) -> np.ndarray | None:
        """Measured-pixel count per training token, (token,) > 0; None if all were measured."""
        return self._weights(self.cell.train)

    @property
    def validation_x(self) -> np.ndarray:
        """Validation activations (token, channel) as stored."""
        return self._known(self.cell.validation_tokens[0], self.cell.validation)

    @property
    def validation_y(self) -> np.ndarray:
        """Validation labels (token,) float64: block means; for a mask, the share of foreground."""
        return self._known(self.cell.validation_tokens[1][:, self.column], self.cell.validation)

    @property
    def validation_weight(self) -> np.ndarray | None:
        """Measured-pixel count per validation token, (token,) > 0; None if all were measured."""
        return self._weights(self.cell.validation)

    @property
    def ridge_path(self) -> tuple[RidgePath, int]:
        """Ridge solutions on the training tokens, and this label's column in the solutions.

        They are fitted to the training tokens.  If the kind of probe has a position term, they are
        fitted to the labels minus that term.
        """
        if self.complete:
            index = self.cell.complete_columns.index(self.column)
            return self.cell.ridge_path(self.kind.position_term), index
        return RidgePath.from_statistics(self._statistics(train=True)), 0

    @property
    def validation_statistics(self) -> tuple[SufficientStatistics, int]:
        """Sufficient statistics of the validation tokens, and this label's index in the statistics.

        As in `ridge_path`, the labels are given minus the position term if the kind has one.
        """
        if not self.complete:
            return self._statistics(train=False), 0
        index = self.cell.complete_columns.index(self.column)
        if not self.kind.position_term:
            return self.cell.validation_statistics, index
        return self.cell.shared(
            "validation, position term",
            lambda: self.cell.without_positions(
                self.cell.validation_statistics, self.cell.complete_columns
            ),
        ), index

    @property
    def position_term(self) -> np.ndarray | None:
        """Position term of the probe's predictions, (y, x); None for a kind without one."""
        if not self.kind.position_term:
            return None
        output = self.kind.mask_output if self.prop.is_mask else "share"
        return position_term(self.cell.labels.mean_tokens(self.prop.name, self.cell.grid), output)

    def token_offsets(self, members: np.ndarray) -> np.ndarray | None:
        """Position term of each token of the samples ``members``, (token,) in the order of `x`.

        None for a kind of probe without a position term.
        """
        term = self.position_term
        if term is None:
            return None
        return self._known(np.resize(term, len(members) * term.size), members)

    def _statistics(self, train: bool) -> SufficientStatistics:
        """Compute sufficient statistics of this label alone, over tokens with measured pixels.

        Args:
            train: whether to use the training tokens; False uses the validation tokens.
        """
        if train:
            members, x, y, weight = self.cell.train, self.x, self.y, self.weight
        else:
            members, weight = self.cell.validation, self.validation_weight
            x, y = self.validation_x, self.validation_y
        positions = np.resize(self.cell.positions, len(members) * self.cell.positions.size)
        statistics = SufficientStatistics.from_tokens(
            x, y[:, None], weight, self._known(positions, members), self.cell.positions.max() + 1
        )
        if self.kind.position_term:
            statistics = self.cell.without_positions(statistics, [self.column])
        return statistics

    @property
    def activations(self) -> np.ndarray:
        """Training activations (sample, y, x, channel) as stored."""
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
        """Return the positive token weights of samples; None if every pixel was measured."""
        weights = self.cell.token_weights(self.column, members)
        return None if weights is None else weights[weights > 0]

    def _known(self, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Select the rows that belong to tokens with at least one measured pixel."""
        weights = self.cell.token_weights(self.column, members)
        return rows if weights is None else rows[weights.ravel() > 0]

    @property
    def _owners(self) -> np.ndarray:
        """Indices of the samples whose labels the training samples get, (training sample,)."""
        return self.cell.label_owners(self.cell.train, self.column)
