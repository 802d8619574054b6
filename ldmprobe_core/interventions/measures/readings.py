"""Scores of a run's probes on the denoiser's activations during an erasure.

After a property was erased from some cells, probes may still find it there if they are of another
kind, and in later layers if the denoiser computes it again or passes it around the erased cells.
The probes were fitted to activations without edits.  A score that stays shows that they still find
the property; a lower score does not show that nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.interventions.results import ProbeReading
from ldmprobe_core.probing.block_scores import BlockScorer
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.study.properties import Property

if TYPE_CHECKING:
    # The imported module loads diffusers, which reports and summaries do not need, so it is
    # imported for type checks only.
    from ldmprobe_core.interventions.editor import Change


@dataclass
class ProbeReader:
    """Recorder of probes' predictions while a batch of edited images is generated.

    Attributes:
        probes: probes of each cell that is read, one for each kind; all cells have the same kinds.
            The cells are those of some layers at each of some steps.
        predicted: predictions in each cell, (sample, y, x, kind) float64; NaN for samples with
            activations that are not finite.
        dtype: data type in which the run stores activations; they are rounded to it.
    """

    probes: dict[tuple[int, str], list[LinearProbe]]
    predicted: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    dtype: torch.dtype = torch.float16

    def reading(self, change: Change, edited: list[tuple[int, str]]) -> Change:
        """Wrap a function that edits activations, so that predictions of `probes` are recorded.

        Args:
            change: function that changes activations.
            edited: cells whose activations it changes; those of other cells keep their bits.
        """
        cells = set(edited)

        def changed(step: int, layer: str, tokens: Tensor) -> Tensor:
            after = change(step, layer, tokens) if (step, layer) in cells else tokens
            if (step, layer) in self.probes:
                # Round the activations to the data type in which the run stores them, so that
                # these scores are comparable with the run's stored scores.
                values = after.to(self.dtype).cpu().numpy()
                self.predicted[step, layer] = predictions(values, self.probes[step, layer])
            return after

        return changed

    def scores(
        self, prop: Property, metric: str, labels: np.ndarray, mean_map: np.ndarray
    ) -> np.ndarray:
        """Score the recorded predictions in one metric, averaged over the steps.

        Args:
            prop: property that the probes predict.
            metric: metric of the property.
            labels: the samples' own label maps, (sample, y, x).
            mean_map: mean label map of the training samples, (y, x).

        Returns:
            (layer, kind, sample) float64, the mean over the steps; NaN where undefined.
        """
        row = prop.metrics.index(metric)
        scorers: dict[tuple[int, ...], BlockScorer] = {}
        layers: dict[str, list[np.ndarray]] = {}
        for (step, layer), values in self.predicted.items():
            grid = values.shape[1], values.shape[2]
            if grid not in scorers:
                scorers[grid] = BlockScorer(prop.name, labels, mean_map, grid)
            finite = np.isfinite(values).all((1, 2, 3))
            values = np.where(finite[:, None, None, None], values, 0.0)
            rows = [
                scorers[grid].scores(values[..., k], probe.cut, (metric,))[row]
                for k, probe in enumerate(self.probes[step, layer])
            ]
            layers.setdefault(layer, []).append(np.where(finite, np.stack(rows), np.nan))
        names = dict.fromkeys(layer for _, layer in self.probes)
        return np.stack([np.mean(layers[name], axis=0) for name in names])


def probe_readings(
    scores: np.ndarray,
    layers: list[str],
    kinds: list[str],
    unedited: Callable[[str, str], np.ndarray],
    bootstrap: Bootstrap,
) -> list[ProbeReading]:
    """Compute mean scores with intervals for each layer and kind of probe.

    Args:
        scores: scores in the generation of edited images, (layer, kind, pair).
        layers, kinds: names on the axes of `scores`.
        unedited: function from layer and kind to the scores in the run, (pair,).
        bootstrap: bootstrap over the pairs.
    """
    return [
        ProbeReading(
            layer=layer,
            kind=kind,
            score=bootstrap.interval(row),
            less_unedited=bootstrap.interval(row - unedited(layer, kind)),
        )
        for layer, by_kind in zip(layers, scores.astype(float), strict=True)
        for kind, row in zip(kinds, by_kind, strict=True)
    ]
