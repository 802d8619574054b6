"""Label maps of a run's images, with the split of each sample.

Layers with the same token grid share the block means and scorers of the labels, so both are cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ldmprobe_core.probing.block_scores import BlockScorer, FullResolutionLabels, block_means
from ldmprobe_core.probing.measured import constant_value


@dataclass(frozen=True)
class LabelSet:
    """Label maps of the final images, and the split of every sample.

    Attributes:
        maps: label maps (sample, y, x) by property; bool for a fully measured mask, else floats
            with NaN at pixels that were not measured.
        means: mean label of the training samples by property, (y, x) float64.
        train, validation, heldout: indices of the samples, ascending; the held-out samples are
            those of the validation and test splits.
        shared: statistics of the maps by property, computed when they are needed.  Label sets that
            differ in the held-out samples alone (`dataclasses.replace`) share them.
    """

    maps: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    train: np.ndarray
    validation: np.ndarray
    heldout: np.ndarray
    shared: dict[str, FullResolutionLabels] = field(default_factory=dict, repr=False)

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

    @property
    def test(self) -> np.ndarray:
        """Indices of the test samples, which are the held-out ones without validation samples."""
        return self.heldout[~np.isin(self.heldout, self.validation)]

    @lru_cache(maxsize=32)  # noqa: B019  (as below)
    def constant(self, prop: str) -> float | None:
        """Return the only value of the test samples' labels, of which probes can show nothing.

        Every prediction of a mask that is empty in all images is right, wherever it comes from.

        Args:
            prop: name of a property.

        Returns:
            the value of all measured pixels; None if they vary or there are none.
        """
        return constant_value(self.maps[prop][self.test])

    def tokens(self, prop: str, grid: tuple[int, int]) -> np.ndarray:
        """Average labels over each token's block, (sample, *grid); NaN if no pixel was measured."""
        return self.full(prop).tokens(grid)

    def token_weights(self, prop: str, grid: tuple[int, int]) -> np.ndarray | None:
        """Count each token's measured pixels, (sample, *grid); None if every pixel was measured."""
        return self.full(prop).token_weights(grid)

    @lru_cache(maxsize=32)  # noqa: B019  (a process keeps one label set per run)
    def mean_tokens(self, prop: str, grid: tuple[int, int]) -> np.ndarray:
        """Mean label map of the training samples, averaged over each token's block, (*grid)."""
        return block_means(self.means[prop][None], grid)[0]

    def full(self, prop: str) -> FullResolutionLabels:
        """Return the statistics of a property's maps, which all scorers share."""
        found = self.shared.get(prop)
        if found is None or found.maps is not self.maps[prop]:
            found = self.shared[prop] = FullResolutionLabels(self.maps[prop])
        return found

    @lru_cache(maxsize=32)  # noqa: B019  (as above)
    def scorer(self, prop: str, grid: tuple[int, int]) -> BlockScorer:
        """Return the scorer that compares token predictions with the held-out maps of `prop`."""
        full = self.full(prop)
        return BlockScorer(prop, full.maps, self.means[prop], grid, full, self.heldout)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other
