"""Fast scoring of token predictions against label maps at the image's size.

A probe predicts one value for each token, which stands for a block of pixels.  `BlockScorer`
computes the scores from block means of the labels, so that it need not upsample the predictions.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ldmprobe_core.probing.detection import auroc, average_precision
from ldmprobe_core.probing.measured import block_counts, partly_measured
from ldmprobe_core.probing.metrics import METRICS, cut_mask, ratio_or_one, score_maps
from ldmprobe_core.probing.partial import BlockPartialScorer, position_covariates
from ldmprobe_core.probing.ranks import (
    RankedMaps,
    deviation_or_nan,
    flatten_maps,
    index_chunks,
    mean_ranks,
)
from ldmprobe_core.study.properties import property_of


def block_means(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Average label maps over each token's block of pixels, skipping unmeasured (NaN) pixels.

    Args:
        maps: label maps (n, y, x), with NaN at pixels that were not measured.
        grid: number of tokens down and across.

    Returns:
        (n, *grid) float64; NaN for a block without measured pixels.

    Raises:
        ValueError: the height or width of the maps is not a multiple of the grid's.
    """
    n, height, width = maps.shape
    y, x = grid
    if height % y or width % x:
        raise ValueError(
            f"maps: {height} x {width} pixels do not divide into {y} x {x} tokens. Fix: use a grid "
            "whose sides divide the height and width of the maps."
        )
    blocks = maps.reshape(n, y, height // y, x, width // x)
    counts = block_counts(maps, grid)
    if counts is None:
        # Two sums, over rows and then over columns, take less than half the time of one over both.
        total = np.add.reduce(blocks, 2, dtype=np.float64).sum(-1)
        return np.asarray(total / ((height // y) * (width // x)))
    total = np.nansum(blocks, (2, 4), dtype=np.float64)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def upsample(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample maps (n, y, x) to `size` by repeating each token over its block of pixels.

    Args:
        size: height and width in pixels, multiples of the token grid.
    """
    _, y, x = tokens.shape
    return tokens.repeat(size[0] // y, 1).repeat(size[1] // x, 2)


class FullResolutionLabels:
    """Full-size label maps of one property, with what scorers need of them.

    Block means, ranks and moments are computed when they are first needed, and then kept, so that
    scorers of all grids and of all parts of the samples share them.

    Args:
        maps: label maps (sample, y, x); bool for a mask, else values; floats with NaN at pixels
            that were not measured.

    Attributes:
        maps: the same maps.
        ranked: their ranks; `RankedMaps.rank` computes them before they are used.
        square, deviation: mean square and standard deviation of each map, (sample,); NaN if they
            were not computed yet.
    """

    def __init__(self, maps: np.ndarray) -> None:
        self.maps, self.ranked = maps, RankedMaps(flatten_maps(maps), np.arange(0))
        self.square, self.deviation = np.full((2, len(maps)), np.nan)
        self._tokens: dict[tuple[int, int], np.ndarray] = {}
        self._weights: dict[tuple[int, int], np.ndarray | None] = {}

    @cached_property
    def partly(self) -> np.ndarray | None:
        """Flag that is True for a map with unmeasured pixels, (sample,); None if there are none."""
        return partly_measured(self.maps)

    def tokens(self, grid: tuple[int, int]) -> np.ndarray:
        """Average the maps over each token's block, as `block_means` does, (sample, *grid)."""
        if grid not in self._tokens:
            self._tokens[grid] = block_means(self.maps, grid)
        return self._tokens[grid]

    def token_weights(self, grid: tuple[int, int]) -> np.ndarray | None:
        """Count each token's measured pixels, (sample, *grid); None if every pixel was measured."""
        if grid not in self._weights:
            counts = None if self.partly is None else block_counts(self.maps, grid)
            self._weights[grid] = counts
        return self._weights[grid]

    def rank_tokens(self, grid: tuple[int, int], rows: np.ndarray) -> np.ndarray:
        """Average the centred ranks of the maps with the given indices over blocks, (n, *grid)."""
        self.ranked.rank(rows)
        size, pixels = self.maps.shape[1:], self.ranked.centred.shape[1]
        means = [
            block_means(self.ranked.centred[part].reshape(-1, *size), grid)
            for part in index_chunks(rows, pixels)
        ]
        return np.concatenate([np.empty((0, *grid)), *means])

    def compute_moments(self, rows: np.ndarray) -> None:
        """Compute `square` and `deviation` of the maps with the given indices."""
        flat = flatten_maps(self.maps)
        for part in index_chunks(rows[np.isnan(self.square[rows])], flat.shape[1]):
            values = flat[part].astype(np.float64)
            # The square marks a map as done, so it is last: threads share these arrays.
            self.deviation[part] = deviation_or_nan(values)
            self.square[part] = np.square(values).mean(1)


class BlockScorer:
    """Scorer of token predictions against full-size label maps, without upsampling them.

    The scores equal those of `score_maps` for the upsampled predictions.

    Let p be a prediction that is constant on each block, and t the label.  The mean of p t over
    pixels equals the mean over blocks of p times the block mean of t, so most metrics need only the
    block means of the labels.  Rank correlation needs only the block means of the labels' ranks,
    because the pixel ranks of p are a linear function of its token ranks.

    Partial correlations are computed by `partial.BlockPartialScorer`.  Two cases need every pixel:
    metrics without a formula in block means, and samples with pixels that were not measured.

    Args:
        prop: name of a property.
        truth: label maps (n, y, x); bool for a mask, else values; floats with NaN at pixels that
            were not measured.
        mean_map: mean label of the training samples, (y, x).
        grid: number of tokens down and across.
        full: statistics of the label maps, shared between scorers; None computes them.
        rows: indices of the label maps with which predictions are compared; None takes all.
    """

    def __init__(
        self,
        prop: str,
        truth: np.ndarray,
        mean_map: np.ndarray,
        grid: tuple[int, int],
        full: FullResolutionLabels | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.prop, self.metrics, self.grid = prop, property_of(prop).metrics, grid
        self.size = truth.shape[1], truth.shape[2]
        self.full = full or FullResolutionLabels(truth)
        self.mean_map = mean_map
        rows = np.arange(len(truth)) if rows is None else rows
        partly = None if self.full.partly is None else self.full.partly[rows]
        self.partly = partly if partly is not None and partly.any() else None
        self.rows, self._partial_rows = rows, rows[:0]
        if self.partly is not None:
            self.rows, self._partial_rows = rows[~self.partly], rows[self.partly]
        if not len(self.rows):
            return
        self.means = flatten_maps(self.full.tokens(grid)[self.rows])
        self._forms = {
            "dice": self._dice,
            "iou": self._iou,
            "auroc": lambda tokens: auroc(flatten_maps(tokens), self.means),
            "average_precision": lambda tokens: average_precision(flatten_maps(tokens), self.means),
        }
        if not property_of(prop).is_mask:
            self._forms = {
                "spearman": self._spearman,
                "pearson": self._pearson,
                "rmse": self._rmse,
                "spearman_partial": lambda tokens: self._by_rank.scores(tokens),
                "pearson_partial": lambda tokens: self._by_value.scores(tokens),
            }

    @cached_property
    def rank_means(self) -> np.ndarray:
        """Block means of the labels' centred ranks, (n, token), without partly measured labels."""
        return flatten_maps(self.full.rank_tokens(self.grid, self.rows))

    @cached_property
    def _by_rank(self) -> BlockPartialScorer:
        """Scorer in partial rank correlation."""
        self.full.ranked.rank(self.rows)
        ranks = self.full.ranked.centred.reshape(self.full.maps.shape)
        return BlockPartialScorer(ranks, self.mean_map, self.grid, ranks=True, rows=self.rows)

    @cached_property
    def _by_value(self) -> BlockPartialScorer:
        """Scorer in partial linear correlation."""
        return BlockPartialScorer(
            self.full.maps, self.mean_map, self.grid, ranks=False, rows=self.rows
        )

    def scores(
        self,
        tokens: np.ndarray,
        cut: float | None = None,
        metrics: tuple[str, ...] | None = None,
    ) -> np.ndarray:
        """Score predictions in every metric of the property.

        Args:
            tokens: predictions (n, *grid); for a mask, bool or values on any scale.
            cut: value above which the prediction of a mask counts as foreground; needed unless the
                prediction is bool.
            metrics: metrics to compute; None computes all.

        Returns:
            (metric, n) float64 for all metrics of the property; NaN for those not computed.

        Raises:
            ValueError: values are given for a mask without a cut.
        """
        if self.partly is None:
            return self._whole_scores(tokens, cut, metrics)
        scores = np.empty((len(self.metrics), len(tokens)))
        if len(self.rows):
            scores[:, ~self.partly] = self._whole_scores(tokens[~self.partly], cut, metrics)
        predicted = upsample(tokens[self.partly], self.size)
        scores[:, self.partly] = score_maps(
            self.prop, predicted, self.full.maps[self._partial_rows], self.mean_map, self.grid, cut
        )
        return scores

    def _whole_scores(
        self, tokens: np.ndarray, cut: float | None, metrics: tuple[str, ...] | None
    ) -> np.ndarray:
        """Score predictions of samples whose labels were measured at every pixel, (metric, n)."""
        regions = cut_mask(tokens, cut) if property_of(self.prop).is_mask else tokens
        return np.stack(
            [
                self._score(name, tokens if METRICS[name].continuous else regions)
                if metrics is None or name in metrics
                else np.full(len(tokens), np.nan)
                for name in self.metrics
            ]
        )

    def _score(self, name: str, tokens: np.ndarray) -> np.ndarray:
        """Score predictions in one metric, from block means if possible, else after upsampling."""
        if name in self._forms:
            return self._forms[name](tokens)
        predicted = upsample(tokens, self.size)
        covariates, truth = position_covariates(self.mean_map, self.grid), self.full.maps[self.rows]
        truth = truth.astype(bool) if property_of(self.prop).is_mask else truth
        return METRICS[name].score(predicted, truth, covariates)

    def _dice(self, tokens: np.ndarray) -> np.ndarray:
        overlap, area, truth = self._areas(tokens)
        return ratio_or_one(2 * overlap, area + truth)

    def _iou(self, tokens: np.ndarray) -> np.ndarray:
        overlap, area, truth = self._areas(tokens)
        return ratio_or_one(overlap, area + truth - overlap)

    def _areas(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the areas (n,) of overlap, prediction and label, as fractions of the image."""
        flat = flatten_maps(tokens)
        return (flat * self.means).mean(1), flat.mean(1), self.means.mean(1)

    def _spearman(self, tokens: np.ndarray) -> np.ndarray:
        ranks, means = mean_ranks(flatten_maps(tokens).astype(np.float64)), self.rank_means
        return _block_correlation(ranks, means, self.full.ranked.deviation[self.rows])

    def _pearson(self, tokens: np.ndarray) -> np.ndarray:
        self.full.compute_moments(self.rows)
        flat = flatten_maps(tokens).astype(np.float64)
        return _block_correlation(flat, self.means, self.full.deviation[self.rows])

    def _rmse(self, tokens: np.ndarray) -> np.ndarray:
        self.full.compute_moments(self.rows)
        flat = flatten_maps(tokens).astype(np.float64)
        cross = (flat * self.means).mean(1)
        squared = self.full.square[self.rows] - 2 * cross + np.square(flat).mean(1)
        return np.sqrt(np.maximum(squared, 0))


def _block_correlation(tokens: np.ndarray, means: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlate block-constant maps with full-size maps over all pixels, (n,).

    Args:
        tokens: values of the block-constant maps, one for each token, (n, token).
        means: block means of the full-size maps, (n, token).
        deviation: standard deviations of the full-size maps over pixels, (n,).
    """
    centred = tokens - tokens.mean(1, keepdims=True)
    covariance = (centred * (means - means.mean(1, keepdims=True))).mean(1)
    return covariance / (deviation_or_nan(tokens) * deviation)
