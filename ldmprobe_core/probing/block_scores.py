"""Fast scoring of token predictions against label maps at the image's size.

A probe predicts one value for each token, which stands for a block of pixels.  `BlockScorer`
computes the scores from block means of the labels, so that it need not upsample the predictions.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.measured import block_counts, partly_measured
from ldmprobe_core.probing.metrics import METRICS, ratio_or_one, score_maps
from ldmprobe_core.probing.ranks import (
    RankedMaps,
    deviation_or_nan,
    flatten_maps,
    iter_chunks,
    mean_ranks,
)
from ldmprobe_core.study.properties import property_of


def block_means(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Average the measured pixels in the block of each token.

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
        raise ValueError(f"maps of {height} x {width} do not divide into {y} x {x} tokens")
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
    """Statistics of label maps that do not depend on the token grid, computed once for all layers.

    Args:
        truth: label maps (n, y, x) of a property that is not a mask.
        mean_map: mean label of the training samples, (y, x).

    Attributes:
        ranked, residual_ranked: ranks of the labels, and of the labels minus the mean map.
        square, deviation: mean square and standard deviation of each label, (n,).
        residual_mean, residual_deviation: mean and standard deviation of (label minus mean map),
            (n,).
        covariance_with_mean: covariance of (label minus mean map) with the mean map, (n,).
    """

    def __init__(self, truth: np.ndarray, mean_map: np.ndarray) -> None:
        self.mean_map = mean_map
        self.ranked = RankedMaps(flatten_maps(truth))
        self.residual_ranked = RankedMaps(flatten_maps(truth), flatten_maps(mean_map[None])[0])
        moments = [self._moments(part) for part in iter_chunks(flatten_maps(truth))]
        (
            self.square,
            self.deviation,
            self.residual_mean,
            self.residual_deviation,
            self.covariance_with_mean,
        ) = (np.concatenate([part[i] for part in moments]) for i in range(5))

    def _moments(self, flat: np.ndarray) -> list[np.ndarray]:
        flat, mean_map = flat.astype(np.float64), self.mean_map.ravel()
        residual = flat - mean_map
        centred = residual - residual.mean(1, keepdims=True)
        return [
            np.square(flat).mean(1),
            deviation_or_nan(flat),
            residual.mean(1),
            deviation_or_nan(residual),
            (centred * mean_map).mean(1),
        ]


class BlockScorer:
    """Scorer of token predictions; it gives the scores that `score_maps` gives after upsampling.

    Let p be a prediction that is constant on each block, and t the label.  The mean of p t over
    pixels equals the mean over blocks of p times the block mean of t, so most metrics need only the
    block means of the labels.  Rank correlation needs only the block means of the labels' ranks,
    because the pixel ranks of p are a linear function of its token ranks.

    Three cases need every pixel: the rank correlation after subtracting the mean map (computed for
    a few samples at a time), metrics without a formula in block means, and samples with pixels that
    were not measured.

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
        self.prop, self.metrics, self.size = prop, record.metrics, (truth.shape[1], truth.shape[2])
        self.partly, self.partial_truth = partly_measured(truth), truth
        if self.partly is not None:
            self.partial_truth, truth = truth[self.partly], truth[~self.partly]
            truth = truth.astype(bool) if record.is_mask else truth
        self.truth, self.mean_map = truth, mean_map
        if not len(truth):
            return
        self.means = flatten_maps(block_means(truth, grid))
        self._forms = {"dice": self._dice, "iou": self._iou}
        if record.is_mask:
            return
        self.full = full or FullResolutionLabels(truth, mean_map)
        ranks = self.full.ranked.centred.reshape(truth.shape)
        self.rank_means = flatten_maps(block_means(ranks, grid))
        self.mean_map_means = flatten_maps(block_means(mean_map[None], grid))
        self._forms = {
            "spearman": self._spearman,
            "pearson": self._pearson,
            "rmse": self._rmse,
            "spearman_residual": self._spearman_residual,
            "pearson_residual": self._pearson_residual,
        }

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """Score predictions in every metric of the property.

        Args:
            tokens: predictions (n, *grid); bool for a mask, else values.

        Returns:
            (metric, n) float64.
        """
        if self.partly is None:
            return np.stack([self._score(name, tokens) for name in self.metrics])
        scores = np.empty((len(self.metrics), len(tokens)))
        if len(self.truth):
            whole = tokens[~self.partly]
            scores[:, ~self.partly] = [self._score(name, whole) for name in self.metrics]
        predicted = upsample(tokens[self.partly], self.size)
        scores[:, self.partly] = score_maps(self.prop, predicted, self.partial_truth, self.mean_map)
        return scores

    def _score(self, name: str, tokens: np.ndarray) -> np.ndarray:
        if name in self._forms:
            return self._forms[name](tokens)
        predicted = upsample(tokens, self.size)
        return METRICS[name].score(predicted, self.truth, self.mean_map)

    def _dice(self, tokens: np.ndarray) -> np.ndarray:
        overlap, area, truth = self._areas(tokens)
        return ratio_or_one(2 * overlap, area + truth)

    def _iou(self, tokens: np.ndarray) -> np.ndarray:
        overlap, area, truth = self._areas(tokens)
        return ratio_or_one(overlap, area + truth - overlap)

    def _areas(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fractions of the image (n,) covered by the overlap, the prediction and the label."""
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

    def _spearman_residual(self, tokens: np.ndarray) -> np.ndarray:
        grid, size = tokens.shape[1:], self.size
        return self.full.residual_ranked.correlation(
            flatten_maps(tokens).astype(np.float64),
            lambda part: flatten_maps(upsample(part.reshape(-1, *grid), size)),
        )

    def _pearson_residual(self, tokens: np.ndarray) -> np.ndarray:
        """Correlate prediction minus mean map with label minus mean map, from block means alone."""
        full, mean_map = self.full, self.full.mean_map
        flat = flatten_maps(tokens).astype(np.float64)
        residual_means = self.means - self.mean_map_means - full.residual_mean[:, None]
        covariance = (flat * residual_means).mean(1) - full.covariance_with_mean
        centred = flat - flat.mean(1, keepdims=True)
        total = np.square(centred).mean(1) + mean_map.var()
        variance = total - 2 * (centred * self.mean_map_means).mean(1)
        # If the prediction equals the mean map, the variance is only rounding error.  NaN marks the
        # correlation as undefined, where a division would give an arbitrary number.
        deviation = np.sqrt(np.where(variance > 1e-12 * total, variance, np.nan))
        return covariance / (deviation * full.residual_deviation)


def _block_correlation(tokens: np.ndarray, means: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation (n,) of maps that are constant on blocks with maps at the image's size.

    Args:
        tokens: values of the block-constant maps, one for each token, (n, token).
        means: block means of the full-size maps, (n, token).
        deviation: standard deviations of the full-size maps over pixels, (n,).
    """
    centred = tokens - tokens.mean(1, keepdims=True)
    covariance = (centred * (means - means.mean(1, keepdims=True))).mean(1)
    return covariance / (deviation_or_nan(tokens) * deviation)
