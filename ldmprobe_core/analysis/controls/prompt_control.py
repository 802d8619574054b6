"""Control that predicts the maps of an image from the embedding of its prompt alone.

A probe must tell more about an image than the words that it was generated from.  The control is a
ridge regression from the prompt's embedding to all tokens of a map, minus the training mean map.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.study.batching import MOST_POSITIONS
from ldmprobe_core.study.properties import property_of


def control_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Return the finest token grid, at most 16 x 16, whose sides divide the image size `size`."""
    down, across = (
        max(n for n in range(1, MOST_POSITIONS + 1) if length % n == 0) for length in size
    )
    return down, across


def prompt_scores(
    embedding: np.ndarray, labels: LabelSet, prop: str, penalties: tuple[float, ...]
) -> np.ndarray:
    """Predict maps from the prompt embeddings alone, and score them on the held-out samples.

    In fits, a token without measured pixels has the value of the training mean map.

    Args:
        embedding: embedding of each sample's prompt, (sample, channel).
        labels: label maps and splits of the same samples, training samples included.
        prop: name of the property.
        penalties: candidate penalties, relative to the mean variance of a channel; the one with the
            least mean squared error on validation samples is used.

    Returns:
        (metric, held-out sample) float64; NaN if an embedding is not finite.
    """
    n, height, width = labels.maps[prop].shape
    grid = control_grid((height, width))
    mean, tokens = labels.mean_tokens(prop, grid), labels.tokens(prop, grid)
    residual = np.nan_to_num(tokens - mean).reshape(n, -1)
    x = embedding.astype(np.float64)
    if not np.isfinite(x).all():
        return np.full((len(property_of(prop).metrics), len(labels.heldout)), np.nan)
    train, validation = labels.train, labels.validation
    unit = float(x[train].var(0).mean()) or 1.0
    fits = [Ridge(alpha=p * unit * len(train)).fit(x[train], residual[train]) for p in penalties]
    errors = [np.square(f.predict(x[validation]) - residual[validation]).mean() for f in fits]
    best = fits[int(np.argmin(errors))]

    def predicted(members: np.ndarray) -> np.ndarray:
        return np.asarray(best.predict(x[members]).reshape(-1, *grid) + mean)

    cut = None
    if property_of(prop).is_mask:
        weights = labels.token_weights(prop, grid)
        cut = best_cut(
            flatten_maps(predicted(train)),
            flatten_maps(tokens[train]),
            None if weights is None else flatten_maps(weights[train]),
        )
    return labels.scorer(prop, grid).scores(predicted(labels.heldout), cut)
