"""Upper bounds that a token grid sets on scores, and the Dice score of an all-foreground mask.

A probe predicts one value for each token, so its prediction is constant on a block of pixels, and
even a perfect probe scores below 1.  Layers with different grids compare fairly only beside these
ceilings.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.detection import dice_at
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.probing.ranks import flatten_maps, iter_chunks
from ldmprobe_core.study.properties import REGISTERED_METRICS, property_of


def block_ceilings(
    labels: LabelSet, prop: str, grids: list[tuple[int, int]], test: np.ndarray
) -> dict[str, float | None]:
    """Compute, for each token grid, the mean test score of the best block-constant predictions.

    Such predictions are constant on each token's block of pixels, as those of every probe are.  For
    a mask, the prediction is the share of foreground in each block, cut where the image's Dice
    is largest.  For other maps, it is the block mean of the label or of its ranks, whichever scores
    higher.  Which prediction is best in a registered metric is not known.

    Args:
        labels: label maps of the run.
        prop: name of the property.
        grids: numbers of tokens down and across.
        test: indices of the test samples, (test sample,).

    Returns:
        mean headline score by grid, such as ``16x16``; None if no test sample has a score, or if
        the main metric is registered.
    """
    chosen = np.isin(labels.heldout, test)
    ceilings: dict[str, float | None] = {}
    if property_of(prop).metrics[0] in REGISTERED_METRICS:
        return {f"{grid[0]}x{grid[1]}": None for grid in grids}
    for grid in dict.fromkeys(grids):
        tokens = labels.tokens(prop, grid)[labels.heldout]
        scorer = labels.scorer(prop, grid)
        if property_of(prop).is_mask:
            weights = labels.token_weights(prop, grid)
            heldout = None if weights is None else weights[labels.heldout]
            best = np.array([_best_dice(tokens, heldout, int(i)) for i in np.flatnonzero(chosen)])
        else:
            candidates = [tokens]
            if scorer.partly is None:
                candidates.append(scorer.rank_means.reshape(tokens.shape))
            metric = (property_of(prop).metrics[0],)
            scores = [scorer.scores(np.nan_to_num(c), None, metric)[0, chosen] for c in candidates]
            best = scores[int(mean_of_defined(np.stack(scores), otherwise=-np.inf).argmax())]
        ceilings[f"{grid[0]}x{grid[1]}"] = _mean_or_none(best)
    return ceilings


def all_foreground_score(masks: np.ndarray) -> float | None:
    """Compute the mean Dice score of a prediction that marks every pixel as foreground.

    Args:
        masks: (n, y, x) bool, or floats with NaN at pixels that were not measured.

    Returns:
        the mean over the masks that have measured pixels; None if there are none.
    """
    parts = [mean_of_defined(part.astype(float)) for part in iter_chunks(flatten_maps(masks))]
    shares = np.concatenate([np.empty(0), *parts])
    return _mean_or_none(2 * shares / (1 + shares))


def _best_dice(shares: np.ndarray, weights: np.ndarray | None, index: int) -> float:
    """Return an image's largest Dice for any threshold on the foreground shares of its tokens.

    Args:
        shares: foreground share of each token's block, (n, y, x).
        weights: number of measured pixels of each token, (n, y, x); None if all were measured.
        index: index of the image.
    """
    row = flatten_maps(shares[index : index + 1])
    values = np.unique(row[np.isfinite(row)])
    if not len(values):
        return float("nan")
    cuts = np.concatenate([[-1.0], values])
    weight = None if weights is None else flatten_maps(weights[index : index + 1])
    return float(dice_at(np.nan_to_num(row), row, cuts, weight).max())


def _mean_or_none(scores: np.ndarray) -> float | None:
    """Average the defined scores (n,); None if there are none, because JSON has no NaN."""
    mean = float(mean_of_defined(scores))
    return mean if np.isfinite(mean) else None
