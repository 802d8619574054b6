"""Probing one cell: every probe and control of one (step, layer), from one read of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ldmprobe_core.controls import shuffle_within
from ldmprobe_core.metrics import METRICS, BlockTruth, block_means
from ldmprobe_core.probes import (
    Moments,
    Probe,
    RidgePath,
    fit_adam,
    fit_logistic,
    fit_ridge,
    foreground_cut,
)
from ldmprobe_core.study import TWO_LAYER, Study
from ldmprobe_core.two_layer import TwoLayerProbe, fit_two_layer


@dataclass(frozen=True)
class LabelSet:
    """Labels of the finished images and who is in which split.

    Attributes:
        maps: property to (sample, y, x); foreground is bool.
        train, validation, held: sample indices; held is validation and test, in sample order.
    """

    maps: dict[str, np.ndarray]
    train: np.ndarray
    validation: np.ndarray
    held: np.ndarray

    def mean_map(self, prop: str) -> np.ndarray:
        """The training samples' mean label, (y, x)."""
        return self.maps[prop][self.train].mean(0, dtype=np.float64)

    def tokens(self, prop: str, grid: tuple[int, int]) -> np.ndarray:
        """Block means of every label, (sample, *grid)."""
        return block_means(self.maps[prop], grid)

    @lru_cache(maxsize=32)  # noqa: B019  (one set lives as long as its run's worker)
    def truth(self, prop: str, grid: tuple[int, int]) -> BlockTruth:
        """Held-out labels, prepared for scoring predictions on this grid."""
        return BlockTruth(prop, self.maps[prop][self.held], self.mean_map(prop), grid)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class CellResult:
    """Probes and scores of a cell.

    Attributes:
        probes: (kind, property) to probe, fitted on true labels.
        scores: property to (kind, metric, held sample) float32; NaN where the kind does not
            serve the property or the score is undefined.
    """

    probes: dict[tuple[str, str], Probe | TwoLayerProbe]
    scores: dict[str, np.ndarray]


def probe_activations(
    activations: np.ndarray, labels: LabelSet, study: Study, shuffled: bool = False
) -> CellResult:
    """Fit every probe of a cell and score it on the held-out samples.

    A sample with a non-finite activation takes no part: it is not trained on and its scores are
    NaN, which the summary counts.

    Args:
        activations: (sample, y, x, channel) float16.
        shuffled: train on labels dealt to other images (the control).
    """
    finite = np.isfinite(activations).reshape(len(activations), -1).all(1)
    train = labels.train[finite[labels.train]]
    validation = labels.validation[finite[labels.validation]]
    maps = labels.maps.keys()
    if len(train) == 0 or len(validation) == 0:
        empty = {
            p: np.full((len(study.kinds), len(METRICS[p]), len(labels.held)), np.nan, "f4")
            for p in maps
        }
        return CellResult({}, empty)
    probes = _fit(activations, labels, train, validation, study, shuffled)

    held = activations[labels.held]
    usable = finite[labels.held]
    scores = {}
    for prop in maps:
        truth = labels.truth(prop, activations.shape[1:3])
        rows = []
        for kind in study.kinds:
            probe = probes.get((kind, prop))
            if probe is None:
                rows.append(np.full((len(METRICS[prop]), len(held)), np.nan))
                continue
            predicted = probe.predict(np.where(usable[:, None, None, None], held, 0))
            tokens = predicted > foreground_cut(kind) if prop == "foreground" else predicted
            rows.append(np.where(usable, truth.scores(tokens), np.nan))
        scores[prop] = np.stack(rows).astype(np.float32)
    return CellResult(probes, scores)


def _fit(
    activations: np.ndarray,
    labels: LabelSet,
    train: np.ndarray,
    validation: np.ndarray,
    study: Study,
    shuffled: bool,
) -> dict[tuple[str, str], Probe | TwoLayerProbe]:
    grid = (activations.shape[1], activations.shape[2])
    seed = study.prompts.seed
    donors = shuffle_within(train, seed) if shuffled else train
    validation_donors = shuffle_within(validation, seed) if shuffled else validation
    maps = list(labels.maps)
    tokens = {prop: labels.tokens(prop, grid) for prop in maps}

    def rows(samples: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = activations[samples].reshape(-1, activations.shape[-1])
        y = np.stack([tokens[prop][owners].ravel() for prop in maps], axis=1)
        return x, y

    x, y = rows(train, donors)
    validation_x, validation_y = rows(validation, validation_donors)
    moments = Moments.of(x, y)
    probes: dict[tuple[str, str], Probe | TwoLayerProbe] = {}
    for kind in study.kinds:
        if kind == "ridge":
            fitted = fit_ridge(
                moments, Moments.of(validation_x, validation_y), study.probes.penalties
            )
            probes.update({("ridge", prop): p for prop, p in zip(maps, fitted, strict=True)})
        elif kind == "logistic" and "foreground" in maps:
            label = maps.index("foreground")
            probes["logistic", "foreground"] = fit_logistic(
                x,
                y[:, label],
                validation_x,
                validation_y[:, label],
                study.probes.penalties,
                RidgePath.of(moments),
                label,
            )
        elif kind == "adam":
            for prop in maps:
                target = labels.maps[prop][donors]
                probes["adam", prop] = fit_adam(
                    activations[train], target, prop == "foreground", seed
                )
        elif kind == TWO_LAYER and not shuffled:
            for prop in maps:
                probes[kind, prop] = fit_two_layer(
                    activations[train], tokens[prop][donors], prop == "foreground", seed
                )
    return probes
