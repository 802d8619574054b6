"""Partial correlations of predictions and labels, with the training mean map regressed out of both.

Any prediction that contains position correlates with the labels, because the labels have a mean map
(a floor is nearer at the bottom of the image).  The partial score excludes this part: for each
image, it is the correlation of prediction and label after both are regressed on the mean map.  For
the rank form, prediction, label and mean map are first replaced by their ranks over the image's
pixels (Kim 2015).

The partial score of a constant prediction is undefined, and so is that of a multiple of the mean
map; in the rank form, that of any monotonic function of the mean map.  Undefined scores are NaN.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.ranks import flatten_maps, index_chunks, mean_ranks

_ROUNDING = 1e-9
"""Share of a map's variance below which the regression's residual counts as rounding error."""


def position_covariates(mean_map: np.ndarray, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Return the position maps that partial correlations regress out of predictions and labels.

    A prediction that is constant on each token's block of pixels cannot follow the mean map inside
    a block.  Regressed on the mean map alone, a prediction of position would keep a remainder, so
    the block means of the mean map are a second covariate of such predictions.

    Args:
        mean_map: mean label of the training samples, (y, x).
        grid: number of tokens down and across, if predictions are constant on blocks; they divide
            the height and width of the map.

    Returns:
        (covariate, y, x) float64: the mean map and, with a grid, its block means at full size.
    """
    mean_map = mean_map.astype(np.float64)
    if grid is None:
        return mean_map[None]
    tall, wide = mean_map.shape[0] // grid[0], mean_map.shape[1] // grid[1]
    means = mean_map.reshape(grid[0], tall, grid[1], wide).mean((1, 3))
    return np.stack([mean_map, means.repeat(tall, 0).repeat(wide, 1)])


def partial_spearman(
    predicted: np.ndarray, truth: np.ndarray, covariates: np.ndarray
) -> np.ndarray:
    """Rank-correlate predictions and labels over pixels, with covariates regressed out of both.

    Args:
        predicted: predictions (n, y, x).
        truth: labels (n, y, x).
        covariates: maps whose ranks are regressed out, (covariate, y, x).

    Returns:
        (n,) float64; NaN where a map is non-finite or is determined by the covariates.
    """
    basis = Covariates(mean_ranks(flatten_maps(covariates)))
    ranks = mean_ranks(flatten_maps(predicted))
    if not basis.leaves_rest(ranks).any():
        # No score is defined, as for a prediction of position alone, so do not rank the labels.
        return np.full(len(truth), np.nan)
    return basis.partial(ranks, mean_ranks(flatten_maps(truth)))


def partial_pearson(predicted: np.ndarray, truth: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Correlate predictions and labels over pixels, with covariates regressed out of both.

    Arguments and result are those of `partial_spearman`, but values take the place of ranks.
    """
    basis = Covariates(flatten_maps(covariates))
    values = flatten_maps(predicted).astype(np.float64)
    if not basis.leaves_rest(values).any():
        return np.full(len(truth), np.nan)
    return basis.partial(values, flatten_maps(truth).astype(np.float64))


class Covariates:
    """Orthonormal basis of the covariate maps that partial correlations regress out.

    Args:
        rows: the maps as rows of pixels, (covariate, pixel).  A constant row, and a row that is a
            linear combination of earlier rows and a constant, adds nothing to the basis.

    Attributes:
        basis: orthonormal rows with mean 0, (direction, pixel) float64.
    """

    def __init__(self, rows: np.ndarray) -> None:
        basis: list[np.ndarray] = []
        for values in rows.astype(np.float64):
            centred = values - values.mean()
            size = float(np.square(centred).sum())
            # Orthogonalise twice: the first pass leaves a rounding error, which the second removes.
            for direction in basis * 2:
                centred = centred - (centred @ direction) * direction
            rest = float(np.square(centred).sum())
            if size > 0 and rest > _ROUNDING * size:
                basis.append(centred / np.sqrt(rest))
        self.basis = np.stack(basis) if basis else np.zeros((0, rows.shape[1]))

    def leaves_rest(self, rows: np.ndarray) -> np.ndarray:
        """Return whether the covariates leave a residual of each row (n, pixel), (n,) bool."""
        centred = rows - rows.mean(1, keepdims=True)
        return np.isfinite(_rest_norm(centred, centred @ self.basis.T))

    def partial(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return correlations (n,) of rows a and b (n, pixel) with the covariates regressed out."""
        a, b = (rows - rows.mean(1, keepdims=True) for rows in (a, b))
        a_parts, b_parts = a @ self.basis.T, b @ self.basis.T
        cross = (a * b).sum(1) - (a_parts * b_parts).sum(1)
        return cross / (_rest_norm(a, a_parts) * _rest_norm(b, b_parts))


def _rest_norm(centred: np.ndarray, parts: np.ndarray, repeats: int = 1) -> np.ndarray:
    """Return the norm of each row's residual after regression on the covariates, (n,).

    The norm is NaN if the residual is no larger than rounding error.

    Args:
        centred: rows with mean 0, (n, value).
        parts: products of the rows with an orthonormal basis of the covariates, (n, direction).
        repeats: number of pixels that share each value of a row.
    """
    size = np.square(centred).sum(1) * repeats
    rest = size - np.square(parts).sum(1)
    return np.sqrt(np.where((size > 0) & (rest > _ROUNDING * size), rest, np.nan))


class BlockPartialScorer:
    """Partial-correlation scorer of token predictions against full-size label maps.

    For each image, the score is the correlation over pixels of prediction and label, after both are
    regressed on the training mean map and its block means (`position_covariates`).  A block is the
    rectangle of pixels for which a token stands; a prediction is constant on it.

    The scores are those of `partial_spearman` or `partial_pearson` for upsampled predictions.  A
    sum over pixels of a prediction times another map equals the sum over blocks of the prediction
    times the block sums of that map, so predictions need not be upsampled.

    Args:
        labels: label maps (n, y, x) without NaN; if `ranks`, their ranks, up to a constant.
        mean_map: mean label of the training samples, (y, x).
        grid: number of tokens down and across; they divide the height and width of the maps.
        ranks: whether to correlate ranks; False correlates values.
        rows: indices of the label maps with which predictions are compared; None takes all.
    """

    def __init__(
        self,
        labels: np.ndarray,
        mean_map: np.ndarray,
        grid: tuple[int, int],
        ranks: bool,
        rows: np.ndarray | None = None,
    ) -> None:
        self.ranks = ranks
        rows = np.arange(len(labels)) if rows is None else rows
        (_, height, width), n = labels.shape, len(rows)
        self._blocks = grid[0], height // grid[0], grid[1], width // grid[1]
        self.pixels_per_block = self._blocks[1] * self._blocks[3]
        basis = Covariates(self._transform(flatten_maps(position_covariates(mean_map, grid)))).basis
        self.basis_sums = self._block_sums(basis)
        self.label_parts, self.label_norm = np.empty((n, len(basis))), np.empty(n)
        self.label_sums = np.empty((n, grid[0] * grid[1]))
        start, flat = 0, flatten_maps(labels)
        for part in index_chunks(rows, flat.shape[1]):
            own, values = slice(start, start + len(part)), flat[part].astype(np.float64)
            centred = values - values.mean(1, keepdims=True)
            self.label_parts[own] = centred @ basis.T
            self.label_norm[own] = _rest_norm(centred, self.label_parts[own])
            self.label_sums[own] = self._block_sums(centred)
            start += len(part)

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """Compute partial correlations (n,) of predictions (n, *grid) and labels."""
        values = self._transform(flatten_maps(tokens).astype(np.float64))
        values = values - values.mean(1, keepdims=True)
        parts = values @ self.basis_sums.T
        cross = (values * self.label_sums).sum(1) - (parts * self.label_parts).sum(1)
        return cross / (_rest_norm(values, parts, self.pixels_per_block) * self.label_norm)

    def _transform(self, rows: np.ndarray) -> np.ndarray:
        """Replace the values of each row by their ranks, if the scorer correlates ranks."""
        return mean_ranks(rows) if self.ranks else rows

    def _block_sums(self, rows: np.ndarray) -> np.ndarray:
        """Sum each row of pixels over the pixel block of each token, (n, block)."""
        blocks = self._blocks[0] * self._blocks[2]
        # If the mean map is constant, there are no covariates, so `rows` is empty.  All sizes are
        # given, because `reshape` cannot infer a size (-1) of an empty array.
        return rows.reshape(len(rows), *self._blocks).sum((2, 4)).reshape(len(rows), blocks)
