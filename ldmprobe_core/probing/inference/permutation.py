"""Permutation p values of the best score over layers and steps."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.probing.inference.selection import ranked_means
from ldmprobe_core.probing.metrics import mean_of_defined


def permutation_p(probe: np.ndarray, draws: np.ndarray) -> float | None:
    """Compute the best probe's permutation p value, corrected for choosing its layer and step.

    In each permutation, the probes of all cells are fitted to labels of other images.  Its
    statistic is the largest mean score over all cells (the maximum statistic of Westfall & Young
    1993), so the p value holds however the cell was chosen.  Cells that are defined in fewer than
    half as many images as another cell of the permutation are left out: a mean over few easy images
    would be the largest of every permutation.

    Args:
        probe: scores of the probe's best cell, (test sample,).
        draws: scores of all permutations, (draw, step, layer, test sample); NaN if undefined, or if
            no kind of probe was fitted to the permutation.

    Returns:
        the p value; None if no score of the probe, or none of any permutation, is defined.
    """
    largest = np.array([ranked_means(draw).max() for draw in draws])
    return share_as_large(float(mean_of_defined(probe)), largest)


def share_as_large(observed: float, permuted: np.ndarray) -> float | None:
    """Compute the share of permutations whose statistic is at least the observed one.

    The observed one counts as a permutation too.

    Args:
        observed: statistic of the true labels.
        permuted: statistic of each permutation, (permutation,); those that are not finite are
            undefined and left out.

    Returns:
        the p value; None if the observed statistic or every other one is undefined.
    """
    permuted = permuted[np.isfinite(permuted)]
    if not np.isfinite(observed) or not len(permuted):
        return None
    return float((1 + (permuted >= observed).sum()) / (1 + len(permuted)))


def permute_groups(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation of samples that moves each group as a whole.

    Samples of one prompt resemble each other.  A permutation of single samples would break that
    likeness as well as the relation under test, and its p values would be too small.  If all groups
    have the same size, each gets the samples of one group in their order.  Otherwise the groups are
    laid, in a random order, on the places of all samples sorted by group.

    Args:
        groups: group of each sample, such as its prompt, (sample,).
        rng: generator of random numbers.

    Returns:
        index of the sample whose value each sample gets, (sample,).
    """
    _, member = np.unique(groups, return_inverse=True)
    rank = rng.permutation(member.max(initial=-1) + 1)
    order = np.empty(len(member), int)
    order[np.argsort(member, kind="stable")] = np.argsort(rank[member], kind="stable")
    return order
