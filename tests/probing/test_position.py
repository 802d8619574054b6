"""Position term of probes against loops and least squares on labels minus the term."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.probing.block_scores import upsample
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.position import position_term, token_positions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.loading import parse_study


@pytest.mark.parametrize(("grid", "down", "across"), [((8, 4), 8, 4), ((64, 20), 16, 16)])
def test_token_positions_are_blocks_of_neighbouring_tokens(grid, down, across):
    positions = token_positions(grid)
    assert positions.shape == grid
    assert sorted(set(positions.ravel())) == list(range(down * across))
    for y, x in np.ndindex(grid):
        # Multiplying first keeps blocks even: token y of n belongs to block floor(y * blocks / n).
        assert positions[y, x] == (y * down // grid[0]) * across + x * across // grid[1]


def test_position_term_is_the_mean_at_each_position():
    tokens = np.random.default_rng(0).random((32, 8))
    expected = np.repeat(tokens.reshape(16, 2, 8).mean(1), 2, axis=0)
    np.testing.assert_allclose(position_term(tokens, "share"), expected)
    clipped = np.clip(expected, 0.01, 0.99)
    np.testing.assert_allclose(position_term(tokens, "logit"), np.log(clipped / (1 - clipped)))
    assert position_term(np.zeros((2, 2)), "logit")[0, 0] == pytest.approx(np.log(1 / 99))


@pytest.mark.parametrize("weighted", [False, True])
def test_less_positions_equals_the_sums_of_labels_minus_the_means(weighted):
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 1, (3000, 4)), rng.normal(size=(3000, 2))
    positions, means = rng.integers(0, 7, 3000), rng.normal(size=(7, 2))
    weight = rng.integers(1, 5, 3000) if weighted else None
    statistics = SufficientStatistics.from_tokens(x, y, weight, positions, 7)
    expected = SufficientStatistics.from_tokens(x, y - means[positions], weight, positions, 7)
    found = statistics.less_positions(means)
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(found.by_position, expected.by_position, rtol=1e-9, atol=1e-7)
    rows = np.column_stack([x, np.ones(3000), y])
    counts = np.ones(3000) if weight is None else weight
    for position in range(7):
        members = positions == position
        total = (counts[members, None] * rows[members]).sum(0)
        np.testing.assert_allclose(statistics.by_position[position], total)
    both = statistics + statistics
    np.testing.assert_allclose(both.by_position, 2 * statistics.by_position)


def test_less_positions_needs_sums_at_each_position():
    statistics = SufficientStatistics.from_tokens(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="by_position: the sums were not computed"):
        statistics.less_positions(np.zeros((1, 1)))


@pytest.fixture
def cell():
    """Activations that tell a part of a depth map, which also has a strong mean map."""
    rng = np.random.default_rng(2)
    activations = rng.normal(0, 1, (30, 4, 4, 3)).astype(np.float16)
    slope = np.linspace(0, 5, 8)[:, None] * np.ones((8, 8))
    signal = upsample(activations[..., 0].astype(float), (8, 8))
    depth = slope + signal + rng.normal(0, 0.5, (30, 8, 8))
    train = np.arange(12)
    means = {"depth": depth[train].mean(0)}
    return activations, LabelSet(
        {"depth": depth}, means, train, np.arange(12, 18), np.arange(12, 30)
    )


def test_draws_of_shuffled_labels_are_ridge_probes_of_permuted_residuals(cell):
    activations, labels = cell
    study = parse_study(
        {
            "labels": {"foreground": None, "shading": None},
            "probes": {"kinds": ["ridge"], "penalties": [1e-4, 1.0]},
            "controls": {"permutations": 3, "permuted_weights": False},
        }
    )
    result = probe_activations(activations, labels, study)
    depth, seed = labels.maps["depth"], study.prompts.seed
    term = labels.means["depth"].reshape(4, 2, 4, 2).mean((1, 3))
    tokens = depth.reshape(30, 4, 2, 4, 2).mean((2, 4))
    columns = [c for c in study.label_columns("trained") if c.assignment == "shuffled"]
    expected, partners = [], []
    for column in columns:
        owners = column.owners(labels.train, seed)
        partners.append(tuple(owners))
        assert sorted(owners) == list(labels.train)
        assert not (owners == labels.train).any()
        x = activations[labels.train].reshape(-1, 3).astype(float)
        y = (tokens[owners] - term).reshape(-1)
        checked = column.owners(labels.validation, seed)
        choose_x = activations[labels.validation].reshape(-1, 3).astype(float)
        choose_y = (tokens[checked] - term).reshape(-1)
        fits = [Ridge(p * x.var(0).mean() * len(x)).fit(x, y) for p in (1e-4, 1.0)]
        fit = min(fits, key=lambda f: ((f.predict(choose_x) - choose_y) ** 2).mean())
        heldout = activations[labels.heldout].astype(float)
        predicted = heldout @ fit.coef_ + fit.intercept_ + term
        expected.append(
            [
                stats.spearmanr(p.ravel(), t.ravel()).statistic
                for p, t in zip(upsample(predicted, (8, 8)), depth[labels.heldout], strict=True)
            ]
        )
    assert len(set(partners)) == 3
    np.testing.assert_allclose(result["shuffled"].draws["depth"], expected, atol=1e-6)
    mean = np.mean(expected, axis=0)
    np.testing.assert_allclose(result["shuffled"].scores["depth"][0, 0], mean, atol=1e-6)
    assert result["true"].draws == {}


def test_draws_are_of_the_kind_that_is_best_on_validation(cell):
    """So that the largest score of a permutation is over all kinds, in whichever order."""
    activations, labels = cell
    noise = np.random.default_rng(1).standard_normal((30, 8, 8)) + 0.02 * labels.maps["depth"]
    means = {"depth": noise[labels.train].mean(0)}
    labels = LabelSet({"depth": noise}, means, labels.train, labels.validation, labels.heldout)

    def draws(*kinds):
        study = parse_study(
            {
                "labels": {"foreground": None, "shading": None},
                "probes": {"kinds": list(kinds), "penalties": [1.0]},
                "controls": {"permutations": 6, "permuted_weights": False},
            }
        )
        return probe_activations(activations, labels, study)["shuffled"].draws["depth"]

    one, other = alone = draws("ridge"), draws("plain_ridge")
    checked = np.isin(labels.heldout, labels.validation)
    better = one[:, checked].mean(1) > other[:, checked].mean(1)
    assert 0 < better.sum() < 6
    expected = np.where(better[:, None], *alone)
    np.testing.assert_array_equal(draws("ridge", "plain_ridge"), expected)
    np.testing.assert_array_equal(draws("plain_ridge", "ridge"), expected)


def test_labels_that_are_not_asked_for_have_no_probes(cell):
    """An intervention fits only the shuffled labels of the property that it edits."""
    activations, labels = cell
    maps = {"depth": labels.maps["depth"], "shading": labels.maps["depth"] ** 2}
    means = {prop: values[:12].mean(0) for prop, values in maps.items()}
    labels = LabelSet(maps, means, labels.train, labels.validation, labels.heldout)
    study = parse_study({"labels": {"foreground": None}, "probes": {"kinds": ["ridge"]}})
    column = LabelColumn("shuffled", "depth")
    result = probe_activations(activations, labels, study, (column,))
    assert list(result) == ["shuffled"]
    assert list(result["shuffled"].probes) == [("ridge", "depth")]
    assert result["shuffled"].draws["depth"].shape == (1, 18)
    assert np.isnan(result["shuffled"].scores["shading"]).all()
