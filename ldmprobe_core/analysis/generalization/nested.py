"""Learning curves and description lengths, from probes fitted to nested sets of training images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import add

import numpy as np

from ldmprobe_core.analysis.generalization.description import code_lengths
from ldmprobe_core.analysis.generalization.records import (
    CodeLengthRecord,
    LearningRecord,
    to_matrix,
)
from ldmprobe_core.analysis.generalization.refits import RefitData, TestScorer, ordered_by_prompt
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample

DRAWS = 3
"""Number of random orders of the training images."""

FEWEST = 4
"""Smallest number of training images of a learning curve."""


def block_ends(n: int) -> list[int]:
    """Return the positions 2, 4, 8, ..., n at which the blocks of a sequence of n images end."""
    return [2**k for k in range(1, max(n, 1).bit_length()) if 2**k < n] + [n]


@dataclass
class NestedBlocks:
    """Random orders of the training images, each divided into blocks with sufficient statistics.

    Attributes:
        data: activations and labels of all samples.
        samples: the same samples.
        seed: seed of the random orders.
    """

    data: RefitData
    samples: list[Sample]
    seed: int

    @property
    def ends(self) -> list[int]:
        """Cumulative number of images at the end of each block."""
        return block_ends(len(self.data.train))

    @cached_property
    def blocks(self) -> list[list[np.ndarray]]:
        """Sample indices of each block, for each random order of the training samples.

        An order keeps the samples of a prompt adjacent.
        """
        rng, train = np.random.default_rng(self.seed), self.data.train
        prompts = np.array([self.samples[i].group for i in train])
        orders = [ordered_by_prompt(train, prompts, rng) for _ in range(DRAWS)]
        return [np.split(order, self.ends[:-1]) for order in orders]

    @cached_property
    def sums(self) -> list[list[SufficientStatistics]]:
        """Sufficient statistics by random order and block."""
        return [[self.data.sums(block) for block in blocks] for blocks in self.blocks]


def learning_record(
    nested: NestedBlocks, scorer: TestScorer, bootstrap: Bootstrap, step: int
) -> LearningRecord | None:
    """Fit probes to growing sets of training images, and score them on the test samples.

    Args:
        nested: blocks of the training images.
        scorer: scorer of the property on the test samples.
        bootstrap: bootstrap over the test samples.
        step: step of the activations (from 1), for the record.

    Returns:
        the record; None without training or validation samples.
    """
    data = nested.data
    if not (len(data.train) and len(data.validation)):
        return None
    validation = data.sums(data.validation)
    chosen = [i for i, end in enumerate(nested.ends) if end >= FEWEST or end == nested.ends[-1]]
    scores = np.empty((len(chosen), DRAWS, len(scorer.test)))
    for draw, (blocks, sums) in enumerate(zip(nested.blocks, nested.sums, strict=True)):
        for row, (i, total) in enumerate(
            (i, total) for i, total in enumerate(accumulate(sums, add)) if i in chosen
        ):
            probe = data.fit(total, validation)
            cut = data.cut(probe, np.concatenate(blocks[: i + 1]))
            tokens = data.predict(probe, scorer.test, cut)
            scores[row, draw] = scorer.scores(tokens, 0.0, headline_only=True)[0]
    return LearningRecord(
        step=step,
        images=[nested.ends[i] for i in chosen],
        score=[bootstrap.interval(row) for row in defined_mean(scores.swapaxes(0, 1))],
        draws=to_matrix(defined_mean(np.moveaxis(scores, 2, 0)).tolist()),
    )


def code_length_record(
    nested: NestedBlocks, bootstrap: Bootstrap, step: int
) -> CodeLengthRecord | None:
    """Compute the mean code length of the training images' labels, coded block by block.

    Args:
        nested: blocks of the training images.
        bootstrap: bootstrap over the training samples, in the order of ``nested.data.train``.
        step: step of the activations (from 1), for the record.

    Returns:
        the record; None if there are at most `FEWEST` training images.
    """
    train = nested.data.train
    if len(train) <= FEWEST:
        return None
    lengths = np.stack(
        [
            code_lengths(nested.data, blocks, sums)[:, train]
            for blocks, sums in zip(nested.blocks, nested.sums, strict=True)
        ]
    )
    # Online coding gives the first two blocks of a random order no code length (NaN): the first
    # probe is fitted to one and its penalty chosen on the other.  The mean over several orders is
    # finite for an image that is in a later block of at least one order.
    position, probe = defined_mean(lengths)
    saved = bootstrap.interval(position - probe)
    defined = np.isfinite(position - probe)
    if saved.mean is None:
        return None
    bits = float(position[defined].mean()), float(probe[defined].mean())
    is_mask = property_of(nested.data.prop).is_mask
    return CodeLengthRecord(
        step=step,
        position=bits[0],
        probe=bits[1],
        saved=saved,
        compression=bits[0] / bits[1] if is_mask and bits[1] > 0 else None,
    )


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Average the finite values over the first axis; NaN where there are none."""
    defined = np.isfinite(values)
    count = defined.sum(0)
    total = np.where(defined, values, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
