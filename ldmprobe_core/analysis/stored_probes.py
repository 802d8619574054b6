"""Probes that a run stores, and the maps that they predict for the run's samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.pipeline.groups import STEP_IMAGES
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of


def stored_probes(run: Run, layer: str, kind: str, prop: str) -> list[LinearProbe]:
    """Read the stored probes of one layer, kind and property, in the order of the steps."""
    study = run.study
    index = {"kind": study.linear_kinds.index(kind), "property": study.labels.maps.index(prop)}
    names = ("weight", "bias", "penalty", "cut", "position")
    stored = {name: run.read(f"probes/{layer}", name, **index) for name in names}
    return [
        LinearProbe(weight.astype(np.float64), float(bias), float(penalty), float(cut), position)
        for weight, bias, penalty, cut, position in zip(
            *(stored[name] for name in names), strict=True
        )
    ]


class SampleMaps:
    """Property maps of samples with step images, predicted by probes or computed by labelers.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        summary: summary of the run; the probes are those of each property's best layer.

    Attributes:
        steps: steps with step images, counted from 1, ascending.
    """

    def __init__(self, run: Run, labels: LabelSet, summary: Summary) -> None:
        self.run, self.labels = run, labels
        self.steps = [int(step) for step in run.read(STEP_IMAGES, "step")]
        self._layers = {prop: part.best.layer for prop, part in summary.properties.items()}
        self._probes = {
            prop: stored_probes(run, part.best.layer, part.best.kind, prop)
            for prop, part in summary.properties.items()
        }

    def of_probes(
        self,
        prop: str,
        samples: list[int],
        steps: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Predict a property's maps from the activations at some steps.

        Args:
            prop: name of the property.
            samples: indices of the samples.
            steps: steps, counted from 1.
            size: height and width of the result; None stands for those of the label maps.  They
                are reached by repeating or skipping tokens.

        Returns:
            (sample, step, y, x) float64; 0 and 1 for a mask, and NaN where no probe could be fitted
            or its prediction is not finite.
        """
        down, across = size or self.labels.maps[prop].shape[1:]
        layer = self._layers[prop]
        predicted = []
        for step in steps:
            activations = self.run.read(
                f"activations/{layer}", "activation", sample=samples, step=step - 1
            )
            probe = self._probes[prop][step - 1]
            values = probe.predict(activations)
            if property_of(prop).is_mask:
                known = np.isfinite(values) & np.isfinite(probe.cut)
                values = np.where(known, values > probe.cut, np.nan)
            y, x = (
                np.arange(n) * m // n for n, m in zip((down, across), values.shape[1:], strict=True)
            )
            predicted.append(values[:, y[:, None], x].astype(float))
        return np.stack(predicted, axis=1)

    def of_labeler(self, prop: str, rows: list[int], steps: Sequence[int]) -> np.ndarray:
        """Read a labeler's maps of the images decoded at some steps.

        Args:
            prop: name of the property.
            rows: rows of the samples in the groups of step images.
            steps: steps, counted from 1, that have step images.

        Returns:
            (sample, step, y, x) as stored, or bool for a mask; NaN where nothing was measured.
        """
        columns = [self.steps.index(step) for step in steps]
        maps = self.run.read("labels_trajectory", prop, sample=rows, step=columns)
        return as_label(self.run.study, prop, maps)
