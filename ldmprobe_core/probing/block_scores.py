"""Scores of predictions that are constant on blocks of pixels, without upsampling them."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.metrics import _ratio
from ldmprobe_core.probing.ranks import (
    RankedMaps,
    deviation_or_nan,
    flatten_maps,
    iter_chunks,
    mean_ranks,
)


def block_means(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean of each token's block of pixels, (n, *grid) float64.

    Raises:
        ValueError: the image does not divide into the grid.
    """
    n, height, width = maps.shape
    y, x = grid
    if height % y or width % x:
        raise ValueError(f"maps of {height} x {width} do not divide into {y} x {x} tokens")
    blocks = maps.reshape(n, y, height // y, x, width // x)
    return blocks.mean((2, 4), dtype=np.float64)


def upsample(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest upsampling of (n, y, x) by whole factors: each token fills its block."""
    _, y, x = tokens.shape
    return tokens.repeat(size[0] // y, 1).repeat(size[1] // x, 2)


class FullResolutionLabels:
    """What scoring needs of full-size label maps whatever the grid: kept once a property.

    Args:
        truth: values (n, y, x).
        mean_map: (y, x), the training images' mean label.
    """

    def __init__(self, truth: np.ndarray, mean_map: np.ndarray) -> None:
        self.mean_map = mean_map
        self.ranked = RankedMaps(flatten_maps(truth))
        self.rest_ranked = RankedMaps(flatten_maps(truth), flatten_maps(mean_map[None])[0])
        moments = [self._moments(part) for part in iter_chunks(flatten_maps(truth))]
        self.square, self.deviation, self.rest_mean, self.rest_deviation, self.with_mean_map = (
            np.concatenate([part[i] for part in moments]) for i in range(5)
        )

    def _moments(self, flat: np.ndarray) -> list[np.ndarray]:
        flat, mean_map = flat.astype(np.float64), self.mean_map.ravel()
        rest = flat - mean_map
        centred = rest - rest.mean(1, keepdims=True)
        return [
            np.square(flat).mean(1),
            deviation_or_nan(flat),
            rest.mean(1),
            deviation_or_nan(rest),
            (centred * mean_map).mean(1),
        ]


class BlockScorer:
    """Label maps, prepared to score block-constant predictions exactly as `score_maps` would.

    A prediction p constant on blocks of B pixels meets a full-size label t only through the
    blocks' means: mean(p t) = mean over blocks of p times the block's mean of t; the same for the
    ranks of t, and a block-constant map's pixel ranks are a linear function of its token ranks.
    Only the ranks of p less the mean map need every pixel; they are taken a few samples at a time.

    Args:
        truth: bool masks for foreground, else values, (n, y, x).
        mean_map: (y, x), the training images' mean label.
        grid: tokens down and across.
        full: of the same maps, where it is there already.
    """

    def __init__(
        self,
        prop: str,
        truth: np.ndarray,
        mean_map: np.ndarray,
        grid: tuple[int, int],
        full: FullResolutionLabels | None = None,
    ) -> None:
        self.prop, self.size = prop, truth.shape[1:]
        self.means = flatten_maps(block_means(truth, grid))
        if prop == "foreground":
            return
        self.full = full or FullResolutionLabels(truth, mean_map)
        ranks = self.full.ranked.centred.reshape(truth.shape)
        self.rank_means = flatten_maps(block_means(ranks, grid))
        self.mean_map = flatten_maps(block_means(mean_map[None], grid))

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """Every metric of the property, (metric, n).

        Args:
            tokens: predictions (n, *grid); bool for foreground, else values.
        """
        flat = flatten_maps(tokens)
        if self.prop == "foreground":
            overlap = (flat * self.means).mean(1)
            area, truth = flat.mean(1), self.means.mean(1)
            return np.stack(
                [_ratio(2 * overlap, area + truth), _ratio(overlap, area + truth - overlap)]
            )
        full, flat = self.full, flat.astype(np.float64)
        squared = full.square - 2 * (flat * self.means).mean(1) + np.square(flat).mean(1)
        return np.stack(
            [
                _block_correlation(mean_ranks(flat), self.rank_means, full.ranked.deviation),
                _block_correlation(flat, self.means, full.deviation),
                np.sqrt(np.maximum(squared, 0)),
                full.rest_ranked.correlation(
                    flat,
                    lambda part: flatten_maps(
                        upsample(part.reshape(-1, *tokens.shape[1:]), self.size)
                    ),
                ),
                self._pearson_residual(flat),
            ]
        )

    def _pearson_residual(self, flat: np.ndarray) -> np.ndarray:
        """Correlation of p - m with t - m, m the mean map, from block means alone."""
        full, mean_map = self.full, self.full.mean_map
        rest_means = self.means - self.mean_map - full.rest_mean[:, None]
        both = (flat * rest_means).mean(1) - full.with_mean_map
        centred = flat - flat.mean(1, keepdims=True)
        own = np.square(centred).mean(1) + mean_map.var()
        variance = own - 2 * (centred * self.mean_map).mean(1)
        # Rounding leaves a trace where the prediction is the mean map itself.
        deviation = np.sqrt(np.where(variance > 1e-12 * own, variance, np.nan))
        return both / (deviation * full.rest_deviation)


def _block_correlation(tokens: np.ndarray, means: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Correlation of a block-constant map with a map of these block means and deviation."""
    centred = tokens - tokens.mean(1, keepdims=True)
    both = (centred * (means - means.mean(1, keepdims=True))).mean(1)
    return both / (deviation_or_nan(tokens) * deviation)
