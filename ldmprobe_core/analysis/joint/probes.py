"""Joint predictions of all components of a vector property or a class map.

Each component is a property of its own, with probes and controls.  The joint property is scored
from the predictions of all of them at each token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.pipeline.probe import read_cell
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of


class JointProbes:
    """Probes and labels of all components of one vector property or class map.

    The probes predict the held-out samples of a run.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        parts: names of the components.

    Attributes:
        kind: kind of the probes: the first linear kind of the study that suits the components.
    """

    def __init__(
        self, run: Run, labels: LabelSet, is_test: np.ndarray, parts: tuple[str, ...]
    ) -> None:
        self.run, self.labels, self.is_test, self.parts = run, labels, is_test, parts
        record = property_of(parts[0])
        self.kind = next(one for one in run.study.linear_kinds if probe_kind(one).supports(record))

    def tokens(self, layer: str) -> Iterator[np.ndarray]:
        """Predict all components from one probe input (a layer or an input control), step by step.

        Yields:
            predictions (held-out sample, y, x, component) float64.  Samples without activations,
            which input controls have, and with non-finite activations are NaN.
        """
        probes = [stored_probes(self.run, layer, self.kind, part) for part in self.parts]
        for step, of_step in enumerate(zip(*probes, strict=True), start=1):
            yield self._of_cell(layer, step, list(of_step))

    def _of_cell(self, layer: str, step: int, probes: list[LinearProbe]) -> np.ndarray:
        index, activations = read_cell(self.run, "trained", step, layer)
        heldout, rows, _ = np.intersect1d(index, self.labels.heldout, return_indices=True)
        features = probe_features(layer, activations[rows])
        # Samples with non-finite activations get undefined predictions, and therefore the score
        # NaN.
        with np.errstate(invalid="ignore"):
            tokens = predictions(features, probes)
        everywhere = np.full((len(self.labels.heldout), *tokens.shape[1:]), np.nan)
        everywhere[np.searchsorted(self.labels.heldout, heldout)] = tokens
        return everywhere

    def truth(self, members: np.ndarray) -> np.ndarray:
        """Labels of the given samples, (n, y, x, component).

        If every component is one constant in all test samples (`LabelSet.constant`), their labels
        are NaN, as pixels are that were not measured.
        """
        truth = np.stack([self.labels.maps[part][members] for part in self.parts], -1)
        if any(self.labels.constant(part) is None for part in self.parts):
            return truth
        of_test = np.isin(members, self.labels.test)[:, None, None, None]
        return np.where(of_test, np.nan, truth)

    def mean_map(self) -> np.ndarray:
        """Mean label of the training samples at each pixel, (y, x, component)."""
        return np.stack([self.labels.means[part] for part in self.parts], -1)

    def exact_maps(self) -> np.ndarray | None:
        """Exact maps of the test samples, (n, y, x, component) float64; None if there are none."""
        if not set(self.parts) <= set(self.run.exact_properties):
            return None
        test = self.labels.heldout[self.is_test]
        maps = [self.run.read("exact_maps", part, sample=test) for part in self.parts]
        return np.stack(maps, -1).astype(np.float64)

    @property
    def has_labeler(self) -> bool:
        """Flag that is True if the labels come from a labeler and not from ground-truth maps."""
        return self.run.study.labels.is_labeled(self.parts[0])


def upsample_tokens(tokens: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Repeat each token's vector over its block of pixels, (n, *size, component).

    Args:
        tokens: vectors (n, token y, token x, component).
        size: height and width in pixels, multiples of the token grid.
    """
    down, across = size[0] // tokens.shape[1], size[1] // tokens.shape[2]
    return tokens.repeat(down, 1).repeat(across, 2)
