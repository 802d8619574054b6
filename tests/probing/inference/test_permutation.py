"""Permutation p values against loops, and permutations that move prompts as a whole."""

import numpy as np
import pytest
from scipy import stats

from ldmprobe_core.probing.inference.permutation import (
    permutation_p,
    permute_groups,
    share_as_large,
)


def test_p_counts_permutations_whose_best_cell_is_as_good():
    rng = np.random.default_rng(0)
    draws, probe = rng.normal(size=(19, 3, 4, 30)), rng.normal(0.3, 0.1, 30)
    largest = [max(cell.mean() for step in draw for cell in step) for draw in draws]
    expected = (1 + sum(value >= probe.mean() for value in largest)) / 20
    assert permutation_p(probe, draws) == pytest.approx(expected)
    assert 0.05 < expected < 1


def test_undefined_permutations_are_no_evidence():
    probe, draws = np.ones(5), np.full((20, 2, 2, 5), np.nan)
    assert permutation_p(probe, draws) is None
    draws[:3] = 2.0
    assert permutation_p(probe, draws) == 1.0
    draws[:3] = 0.0
    assert permutation_p(probe, draws) == 1 / 4
    assert permutation_p(np.full(5, np.nan), draws) is None
    assert share_as_large(0.5, np.array([])) is None


def test_cell_that_is_defined_in_an_easy_image_alone_does_not_hide_a_relation():
    rng = np.random.default_rng(3)
    probe = rng.normal(0.7, 0.05, 40)
    draws = rng.normal(0.4, 0.05, (20, 3, 4, 40))
    assert permutation_p(probe, draws) == 1 / 21
    draws[:, 2, 1, 1:], draws[:, 2, 1, 0] = np.nan, 0.9
    assert permutation_p(probe, draws) == 1 / 21
    # Defined in half of the images, the cell counts.
    draws[:, 2, 1, :20] = 0.9
    assert permutation_p(probe, draws) == 1.0
    # If every cell of a permutation is defined in one image, these are compared.
    draws[0, ..., 1:], draws[1:] = np.nan, 0.4
    assert permutation_p(probe, draws) == 2 / 21


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [1] * 9, [4, 1, 2, 5]])
def test_permutation_moves_groups_as_a_whole(sizes):
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    seen = set()
    for _ in range(60):
        order = permute_groups(groups, rng)
        assert sorted(order) == list(range(len(groups)))
        seen.add(tuple(order))
        # Read in the order of the groups, the samples of each group stay together.
        places = np.argsort(groups, kind="stable")
        runs = 1 + np.count_nonzero(np.diff(groups[order[places]]))
        assert runs == len(sizes)
        if len(set(sizes)) == 1:
            for group in range(len(sizes)):
                assert len(set(groups[order[groups == group]])) == 1
    assert len(seen) > 5


def test_p_of_numbers_that_are_alike_within_a_prompt_is_not_too_small():
    """Of 200 studies without a relation, about 5% have p <= .05; single samples give far more."""
    rng = np.random.default_rng(2)
    groups, found = np.repeat(np.arange(12), 8), {"groups": [], "samples": []}
    for _ in range(200):
        predicted, truth = (rng.normal(size=12)[groups] + 0.1 * rng.normal(size=96) for _ in "ab")
        observed = stats.spearmanr(predicted, truth).statistic
        for name, order in (
            ("groups", lambda: permute_groups(groups, rng)),
            ("samples", lambda: rng.permutation(96)),
        ):
            permuted = [stats.spearmanr(predicted, truth[order()]).statistic for _ in range(19)]
            found[name].append(share_as_large(observed, np.array(permuted)))
    false = {name: np.mean(np.array(values) <= 0.05) for name, values in found.items()}
    assert false["groups"] < 0.1  # 3 standard errors above .05
    assert false["samples"] > 0.2
