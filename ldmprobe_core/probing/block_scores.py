"""Fast scoring of token predictions against label maps at the image's size.

A probe predicts one value for each token, which stands for a block of pixels.  `BlockScorer`
computes the scores from block means of the labels, so that it need not upsample the predictions.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.detection import auroc, average_precision
from ldmprobe_core.probing.measured import block_counts, partly_measured
from ldmprobe_core.probing.metrics import METRICS, cut_mask, ratio_or_one, score_maps
from ldmprobe_core.probing.partial import BlockPartialScorer, position_covariates
from ldmprobe_core.probing.ranks import (
    RankedMaps,
    deviation_or_nan,
    flatten_maps,
    iter_chunks,
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
        return blocks.mean((2, 4), dtype=np.float64)
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
    """Ranks, mean squares and standard deviations of full-size label maps.

    They do not depend on the token grid, so the scorers of all grids share them.

    Args:
        truth: label maps (n, y, x) of a property that is not a mask.

    Attributes:
        ranked: ranks of the labels.
        square, deviation: mean square and standard deviation of each label, (n,).
    """

    def __init__(self, truth: np.ndarray) -> None:
        flat = flatten_maps(truth)
        self.ranked = RankedMaps(flat)
        self.square, self.deviation = np.empty(len(flat)), np.empty(len(flat))
        start = 0
        for chunk in iter_chunks(flat):
            rows, values = slice(start, start + len(chunk)), chunk.astype(np.float64)
            self.square[rows] = np.square(values).mean(1)
            self.deviation[rows] = deviation_or_nan(values)
            start += len(chunk)


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
        full: statistics of the label maps without NaN, shared between grids; None computes them.
    """

    def __init__(
        self,
        prop: str,
        truth: np.ndarray,
        mean_map: np.ndarray,
        grid: tuple[int, int],
        full: FullResolutionLabels | None = None,
    ) -> None:
        record = property_of(prop)
        self.prop, self.metrics, self.grid = prop, record.metrics, grid
        self.size = truth.shape[1], truth.shape[2]
        self.partly, self.partial_truth = partly_measured(truth), truth
        if self.partly is not None:
            self.partial_truth, truth = truth[self.partly], truth[~self.partly]
            truth = truth.astype(bool) if record.is_mask else truth
        self.truth, self.mean_map = truth, mean_map
        if not len(truth):
            return
        self.means = flatten_maps(block_means(truth, grid))
        self._forms = {
            "dice": self._dice,
            "iou": self._iou,
            "auroc": lambda tokens: auroc(flatten_maps(tokens), self.means),
            "average_precision": lambda tokens: average_precision(flatten_maps(tokens), self.means),
        }
        if record.is_mask:
            return
        self.full = full or FullResolutionLabels(truth)
        ranks = self.full.ranked.centred.reshape(truth.shape)
        self.rank_means = flatten_maps(block_means(ranks, grid))
        self._forms = {"spearman": self._spearman, "pearson": self._pearson, "rmse": self._rmse}
        if "spearman_partial" in self.metrics:
            by_rank = BlockPartialScorer(ranks, mean_map, grid, ranks=True)
            self._forms["spearman_partial"] = by_rank.scores
        if "pearson_partial" in self.metrics:
            by_value = BlockPartialScorer(truth, mean_map, grid, ranks=False)
            self._forms["pearson_partial"] = by_value.scores

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
        if len(self.truth):
            scores[:, ~self.partly] = self._whole_scores(tokens[~self.partly], cut, metrics)
        predicted = upsample(tokens[self.partly], self.size)
        scores[:, self.partly] = score_maps(
            self.prop, predicted, self.partial_truth, self.mean_map, self.grid, cut
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
        covariates = position_covariates(self.mean_map, self.grid)
        return METRICS[name].score(predicted, self.truth, covariates)

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
        ranks = mean_ranks(flatten_maps(tokens).astype(np.float64))
        return _block_correlation(ranks, self.rank_means, self.full.ranked.deviation)

    def _pearson(self, tokens: np.ndarray) -> np.ndarray:
        flat = flatten_maps(tokens).astype(np.float64)
        return _block_correlation(flat, self.means, self.full.deviation)

    def _rmse(self, tokens: np.ndarray) -> np.ndarray:
        flat = flatten_maps(tokens).astype(np.float64)
        cross = (flat * self.means).mean(1)
        squared = self.full.square - 2 * cross + np.square(flat).mean(1)
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
