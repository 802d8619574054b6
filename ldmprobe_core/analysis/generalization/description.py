"""Description length of labels by online coding (Voita & Titov 2020, section 2.2.2).

Sender and receiver have the activations of all images, and the receiver lacks the labels.  Blocks
of images are coded in order, and each block uses only what earlier blocks determine:

1. A ridge probe with a position term is fitted to all blocks before the last coded one, at the
   penalty with the least squared error on the last coded block.
2. A noise model turns predictions into probabilities.  It is fitted to the predictions that this
   probe gives for the last coded block, which are out of sample.  For a map of numbers, it is a
   Gaussian density with one variance.  For a mask, it is the probability expit(a + b x prediction)
   of foreground.
3. The probe is fitted again, at the same penalty, to all coded blocks, and codes the next block
   through the noise model.

The code with the position term alone follows the same rules with the weights and bias at 0, so that
its predictions are the mean map of the coded images.  Both codes would need the same bits for the
first two blocks, for which there is no model yet, and these are not counted.  Nor is a block after
one whose labels hardly vary: the variance of the noise there says nothing about other images.

Tokens are coded independently.  The tokens of an image are alike, so a code of whole images could
be shorter; both lengths are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from operator import add

import numpy as np

from ldmprobe_core.analysis.generalization.refits import RefitData
from ldmprobe_core.probing.fitters.logistic import LogisticPath, SoftLabels
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.properties import property_of

SMALLEST_VARIANCE = 1e-6
"""Smallest variance of the Gaussian noise model, relative to the variance of the labels."""

LEAST_VARIATION = 1e-2
"""Smallest variance of a block's labels, relative to all training labels, for a noise model.

Labels that are constant in many images may be constant in a whole block.  The next image that is
not would then be coded with next to no variance, in thousands of bits per token.
"""

SMOOTHING = 1e-3
"""Weight with which foreground fractions are averaged with 1/2, so that none is 0 or 1.

A mask without any foreground would otherwise be coded with a probability of 0.
"""

_SLOPE_PENALTY = 1e-4

_NoiseModel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function of predictions and labels that returns the code length of each label in bits."""


def code_lengths(
    data: RefitData, blocks: list[np.ndarray], sums: list[SufficientStatistics]
) -> np.ndarray:
    """Compute the online code length of each sample's labels, with samples coded block by block.

    Args:
        data: activations and labels of all samples.
        blocks: indices of the samples of each block, in the order of coding.
        sums: sufficient statistics of each block.

    Returns:
        mean code length of the tokens of each sample in bits, with the position term alone and with
        the probe, (2, sample) float64; tokens are weighted by their measured pixels.  NaN for the
        samples of the first two blocks, of a block after one whose labels hardly vary, and for
        samples outside the blocks.
    """
    lengths = np.full((2, len(data.activations)), np.nan)
    is_mask = property_of(data.prop).is_mask
    smallest = LEAST_VARIATION * _label_variance(data, data.train)
    coded = list(accumulate(sums, add))
    for i in range(2, len(blocks)):
        if not (coded[i - 2].n and sums[i - 1].n):
            continue
        if not is_mask and _label_variance(data, blocks[i - 1]) <= smallest:
            continue
        trial = data.fit(coded[i - 2], sums[i - 1])
        final = data.fit(coded[i - 1], sums[i - 1], (trial.penalty,))
        pairs = [(_position_alone(trial), _position_alone(final)), (trial, final)]
        for row, (earlier, probe) in zip(lengths, pairs, strict=True):
            row[blocks[i]] = _block_lengths(data, earlier, probe, blocks[i - 1], blocks[i])
    return lengths


def _label_variance(data: RefitData, members: np.ndarray) -> float:
    """Compute the variance of samples' token labels, weighted by measured pixels; 0 without any."""
    truth, weights = data.tokens(members), data.weights(members)
    weight = np.ones(truth.shape) if weights is None else weights
    known = weight > 0
    if not known.any():
        return 0.0
    truth, weight = truth[known], weight[known]
    mean = np.average(truth, weights=weight)
    return float(np.average(np.square(truth - mean), weights=weight))


def _position_alone(probe: LinearProbe) -> LinearProbe:
    """Return a copy of a probe with zero weights and bias: it predicts only its position term."""
    return replace(probe, weight=np.zeros_like(probe.weight), bias=0.0)


def _block_lengths(
    data: RefitData,
    earlier: LinearProbe,
    probe: LinearProbe,
    tuning: np.ndarray,
    block: np.ndarray,
) -> np.ndarray:
    """Compute each sample's mean code length per token, in bits, for one block of samples, (n,).

    Args:
        data: activations and labels.
        earlier: probe whose predictions of the samples `tuning` determine the noise model.
        probe: probe that predicts the block.
        tuning: indices of the samples of the last coded block.
        block: indices of the samples to code.
    """
    predicted, truth = earlier.predict(data.activations[tuning]), data.tokens(tuning)
    weights = data.weights(tuning)
    weight = np.ones(truth.shape) if weights is None else weights
    known = weight > 0
    fit = fit_bernoulli if property_of(data.prop).is_mask else fit_gaussian
    bits = fit(predicted[known], truth[known], weight[known])
    truth, weights = data.tokens(block), data.weights(block)
    weight = np.ones(truth.shape) if weights is None else weights
    values = bits(probe.predict(data.activations[block]), np.where(weight > 0, truth, 0))
    total = weight.sum((1, 2))
    spent = (values * weight).sum((1, 2))
    return np.where(total > 0, spent / np.where(total > 0, total, 1), np.nan)


def fit_gaussian(predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> _NoiseModel:
    """Fit a Gaussian noise model of labels, with the prediction as mean and a constant variance.

    Args:
        predicted, truth: predictions and labels of tokens, (token,).
        weight: weight of each token, (token,) > 0.

    Returns:
        function that gives bits per label of a density per unit of the label.
    """
    mean = np.average(truth, weights=weight)
    smallest = SMALLEST_VARIANCE * np.average(np.square(truth - mean), weights=weight)
    variance = np.average(np.square(truth - predicted), weights=weight)
    # If all labels are equal and predicted exactly, `variance` and `smallest` are both 0.  The
    # third value, a tiny positive float, then prevents a division by 0 in `bits`.
    variance = max(variance, smallest, np.finfo(float).tiny)

    def bits(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        squared = np.square(truth - predicted) / variance
        return np.asarray((np.log(2 * np.pi * variance) + squared) / (2 * np.log(2)))

    return bits


def fit_bernoulli(predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> _NoiseModel:
    """Fit a logistic noise model of a mask: P(foreground) = expit(a + b * prediction).

    Args:
        predicted: predicted shares of foreground, (token,).
        truth: shares of foreground, (token,) in 0..1.
        weight: weight of each token, (token,) > 0.

    Returns:
        function that gives the expected bits of one pixel of a token's block, which is the cross
        entropy of its share of foreground.
    """
    smooth = truth * (1 - SMOOTHING) + SMOOTHING / 2
    path = LogisticPath(SoftLabels(predicted[:, None], smooth, weight))
    slope, intercept = path.solve(_SLOPE_PENALTY, (np.zeros(1), 0.0))

    def bits(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        logits = intercept + slope[0] * predicted
        return np.asarray((np.logaddexp(0, logits) - truth * logits) / np.log(2))

    return bits
