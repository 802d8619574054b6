"""Label maps of a run's images, with the split of each sample.

Layers with the same token grid share the block means and scorers of the labels, so both are cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ldmprobe_core.probing.block_scores import BlockScorer, FullResolutionLabels, block_means
from ldmprobe_core.probing.measured import block_counts, partly_measured
from ldmprobe_core.study.properties import property_of


@dataclass(frozen=True)
class LabelSet:
    """Label maps of the final images, and the split of every sample.

    Attributes:
        maps: label maps (sample, y, x) by property; bool for a fully measured mask, else floats
            with NaN at pixels that were not measured.
        means: mean label of the training samples by property, (y, x) float64.
        train, validation, heldout: indices of the samples, ascending; the held-out samples are
            those of the validation and test splits.
    """

    maps: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    train: np.ndarray
    validation: np.ndarray
    heldout: np.ndarray

    @lru_cache(maxsize=4)  # noqa: B019  (as below)
    def subset(self, members: tuple[int, ...]) -> LabelSet:
        """Return the labels of some samples, with the unchanged mean maps of all training samples.

        Args:
            members: indices of the samples, ascending; the new set numbers them from 0.
        """
        index = np.array(members, int)
        train, validation, heldout = (
            np.flatnonzero(np.isin(index, part))
            for part in (self.train, self.validation, self.heldout)
        )
        maps = {prop: values[index] for prop, values in self.maps.items()}
        return LabelSet(maps, self.means, train, validation, heldout)

    @lru_cache(maxsize=32)  # noqa: B019  (as below)
    def tokens(self, prop: str, grid: tuple[int, int]) -> np.ndarray:
        """Average labels over each token's block, (sample, *grid); NaN if no pixel was measured."""
        return block_means(self.maps[prop], grid)

    @lru_cache(maxsize=32)  # noqa: B019  (as below)
    def token_weights(self, prop: str, grid: tuple[int, int]) -> np.ndarray | None:
        """Count each token's measured pixels, (sample, *grid); None if every pixel was measured."""
        return block_counts(self.maps[prop], grid)

    @lru_cache(maxsize=32)  # noqa: B019  (as above)
    def mean_tokens(self, prop: str, grid: tuple[int, int]) -> np.ndarray:
        """Mean label map of the training samples, averaged over each token's block, (*grid)."""
        return block_means(self.means[prop][None], grid)[0]

    @lru_cache(maxsize=8)  # noqa: B019  (a process keeps one label set per run)
    def _full(self, prop: str) -> FullResolutionLabels:
        """Return ranks and moments of fully measured held-out maps, which all scorers share."""
        heldout = self.maps[prop][self.heldout]
        partly = partly_measured(heldout)
        return FullResolutionLabels(heldout if partly is None else heldout[~partly])

    @lru_cache(maxsize=32)  # noqa: B019  (as above)
    def scorer(self, prop: str, grid: tuple[int, int]) -> BlockScorer:
        """Return the scorer that compares token predictions with the held-out maps of `prop`."""
        heldout, mean_map = self.maps[prop][self.heldout], self.means[prop]
        partly = partly_measured(heldout)
        if property_of(prop).is_mask or (partly is not None and partly.all()):
            return BlockScorer(prop, heldout, mean_map, grid)
        return BlockScorer(prop, heldout, mean_map, grid, self._full(prop))

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
