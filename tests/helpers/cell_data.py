"""Activations of one cell with labels that they partly determine, for tests of refitted probes."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.generalization.refits import RefitData
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import mean_map
from ldmprobe_core.study.samples import Sample

PENALTIES = (1e-3, 1e-1, 10.0)


def small_cell(samples: int = 40, missing: bool = False) -> tuple[np.ndarray, LabelSet]:
    """Activations (sample, 4, 4, 5) and labels of depth and foreground at 8 x 8 pixels.

    The first 20 samples are training samples, the next 8 validation and the rest test samples.
    With ``missing``, a quarter of the pixels of depth is not measured.
    """
    rng = np.random.default_rng(3)
    activations = rng.normal(size=(samples, 4, 4, 5)).astype(np.float16)
    tokens = activations.astype(float) @ [1.0, -0.5, 0, 0, 0.2]
    depth = tokens.repeat(2, 1).repeat(2, 2) + np.linspace(0, 2, 8)[:, None]
    depth = depth + rng.normal(0, 0.7, depth.shape)
    maps = {"depth": depth, "foreground": depth > 1.5}
    if missing:
        maps["depth"] = np.where(rng.random(depth.shape) < 0.25, np.nan, depth)
        maps["depth"][:3, :2, :2] = np.nan
    means = {prop: mean_map(values[:20]) for prop, values in maps.items()}
    heldout = np.arange(20, samples)
    return activations, LabelSet(maps, means, np.arange(20), np.arange(20, 28), heldout)


def refit_data(prop: str, missing: bool = False) -> RefitData:
    activations, labels = small_cell(missing=missing)
    return RefitData(activations, labels, prop, PENALTIES)


def cell_samples(categories: int = 6, per_prompt: int = 2) -> list[Sample]:
    """The samples of `small_cell`, with categories in turn and several samples a prompt."""
    splits = ["train"] * 20 + ["validation"] * 8 + ["test"] * 12
    return [
        Sample(i, f"prompt {i // per_prompt}", i, f"c{i % categories}", split)
        for i, split in enumerate(splits)
    ]


def pixel_blocks(data: RefitData, members: np.ndarray) -> np.ndarray:
    """Labels (n, 4, 4, pixel of the token's block) float64."""
    maps = data.labels.maps[data.prop][members].astype(float)
    return maps.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 4, 4, 4)


def _pixels(data: RefitData, members: np.ndarray, term: np.ndarray) -> tuple:
    """Activations and labels less the term, with one row for each measured pixel."""
    labels = (pixel_blocks(data, members) - term[..., None]).reshape(-1)
    x = data.activations[members].astype(float).reshape(-1, 5).repeat(4, axis=0)
    known = ~np.isnan(labels)
    return x[known], labels[known]


def probe_on_pixels(
    data: RefitData,
    members: np.ndarray,
    validation: np.ndarray,
    penalties: tuple[float, ...] = PENALTIES,
) -> tuple[Ridge, np.ndarray, float]:
    """Scikit-learn's ridge probe of some samples with one row a pixel, its term and its penalty."""
    term = np.nanmean(pixel_blocks(data, members), axis=(0, 3))
    x, y = _pixels(data, members, term)
    unit = x.var(0).mean() * len(x)
    fits = [Ridge(alpha=penalty * unit).fit(x, y) for penalty in penalties]
    valid_x, valid_y = _pixels(data, validation, term)
    errors = [np.square(fit.predict(valid_x) - valid_y).mean() for fit in fits]
    best = int(np.argmin(errors))
    return fits[best], term, penalties[best]


def predict_slowly(data: RefitData, fit: Ridge, term: np.ndarray, members: np.ndarray):
    """Predictions of tokens (n, 4, 4) of a probe from `probe_on_pixels`."""
    x = data.activations[members].astype(float)
    return fit.predict(x.reshape(-1, 5)).reshape(-1, 4, 4) + term
