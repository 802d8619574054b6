"""Matching of points between two images, by the nearest neighbours of their tokens."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.errors import UserError


def nearest_tokens(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Match each point of an image to a point of another image, by the tokens' cosine similarity.

    Each point is represented by the token that contains it, and its match is the centre of the most
    similar token of the other image (Tang et al. 2023, "Emergent Correspondence from Image
    Diffusion", without interpolation of tokens).

    Args:
        source, target: activations of the two images, (y, x, channel) each.
        points: (point, 2) row and column as fractions 0..1 of the source image's height and width.

    Returns:
        (point, 2) float64 row and column as fractions of the target image's height and width.

    Raises:
        UserError: the activations have different numbers of channels or are not finite, or a point
            is outside the image.
    """
    if source.shape[-1] != target.shape[-1]:
        raise UserError(
            f"target: its number of channels is not that of source ({target.shape[-1]}, not "
            f"{source.shape[-1]}). Fix: give activations of the same layer"
        )
    for name, values in (("source", source), ("target", target)):
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).any(-1).sum())
            raise UserError(
                f"{name}: {count} of its tokens have activations that are not finite, and would be "
                "similar to none or to all. Fix: choose another layer or step, or float32 "
                "activations (capture.dtype)"
            )
    places = np.asarray(points, dtype=np.float64)
    if not ((places >= 0) & (places <= 1)).all():
        raise UserError(
            f"points: some are outside the image ({places.min():.3g} to {places.max():.3g}). Fix: "
            "give rows and columns as fractions from 0 to 1"
        )
    sides = np.array(source.shape[:2])
    row, column = np.minimum(places * sides, sides - 1).astype(int).T
    queries = _unit_tokens(source[row, column])
    candidates = _unit_tokens(target.reshape(-1, target.shape[-1]))
    best = (queries @ candidates.T).argmax(1)
    rows, columns = np.divmod(best, target.shape[1])
    return (np.column_stack([rows, columns]) + 0.5) / target.shape[:2]


def pck(predicted: np.ndarray, truth: np.ndarray, tolerance: float = 0.1) -> float:
    """Compute the percentage of correct keypoints, as a fraction 0..1.

    Args:
        predicted, truth: points in the same unit, (point, 2), such as fractions of the image.
        tolerance: largest distance of a correct point, in that unit.

    Returns:
        fraction of the points that are correct; NaN without points.
    """
    distance = np.linalg.norm(np.asarray(predicted) - np.asarray(truth), axis=-1)
    return float((distance <= tolerance).mean()) if len(distance) else float("nan")


def _unit_tokens(tokens: np.ndarray) -> np.ndarray:
    """Scale tokens (n, channel) to length 1, in float32; zero tokens stay zero."""
    values = tokens.astype(np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1)
