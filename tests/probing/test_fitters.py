"""Probes against scikit-learn and hand-written loops, on pixels, not on blocks."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.adam import fit_adam
from ldmprobe_core.probing.fitters.logistic import LogisticPath, fit_logistic, logistic_loss
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics

N, GRID, SIZE, CHANNELS = 9, (3, 4), (6, 12), 5
PIXELS = SIZE[0] * SIZE[1] // (GRID[0] * GRID[1])


@pytest.fixture
def data():
    """Activations (n, y, x, channel), a mask and a depth map at full size that depend on them."""
    rng = np.random.default_rng(3)
    activations = rng.normal(1, [1, 2, 0.5, 1, 3], (N, *GRID, CHANNELS))
    big = activations.repeat(2, 1).repeat(3, 2)
    signal = big @ np.array([1, -0.5, 2, 0, 0.2])
    depth = signal + rng.normal(0, 1, (N, *SIZE))
    return activations, depth > depth.mean(), depth


def pixel_rows(activations):
    return activations.repeat(2, 1).repeat(3, 2).reshape(-1, CHANNELS)


def token_rows(activations):
    return activations.reshape(-1, CHANNELS)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_ridge_on_block_means_equals_scikit_learn_on_pixels(data, penalty):
    activations, _, depth = data
    x, y = token_rows(activations), block_means(depth, GRID).reshape(-1, 1)
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(x, y))
    weight, bias = path.solve(penalty)
    pixels = pixel_rows(activations)
    unit = token_rows(activations).var(0).mean()
    assert path.unit == pytest.approx(unit)
    reference = Ridge(alpha=penalty * unit * len(pixels)).fit(pixels, depth.ravel())
    np.testing.assert_allclose(weight[:, 0], reference.coef_, rtol=1e-8)
    assert bias[0] == pytest.approx(reference.intercept_)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_logistic_on_shares_equals_scikit_learn_on_pixels(data, penalty):
    activations, mask, _ = data
    share = block_means(mask, GRID).ravel()
    start = np.zeros(CHANNELS), 0.0
    weight, bias = LogisticPath(token_rows(activations), share).solve(penalty, start, 1e-14)
    pixels = pixel_rows(activations)
    reference = LogisticRegression(C=1 / (penalty * len(pixels)), tol=1e-10, max_iter=10_000)
    reference.fit(pixels, mask.ravel())
    np.testing.assert_allclose(weight, reference.coef_[0], rtol=1e-4, atol=1e-6)
    assert bias == pytest.approx(reference.intercept_[0], rel=1e-4)


def test_logistic_loss_is_the_pixels_mean_cross_entropy(data):
    activations, mask, _ = data
    weight, bias = np.array([0.3, -1, 0.2, 0, 1]), 0.7
    chance = 1 / (1 + np.exp(-(pixel_rows(activations) @ weight + bias)))
    truth = mask.ravel()
    expected = -(truth * np.log(chance) + ~truth * np.log(1 - chance)).mean()
    share = block_means(mask, GRID).ravel()
    assert logistic_loss(token_rows(activations), share, weight, bias) == pytest.approx(expected)


def test_penalty_is_the_one_with_the_least_validation_error(data):
    activations, mask, depth = data
    labels = np.stack([block_means(m, GRID).ravel() for m in (mask, depth)], 1)
    x = token_rows(activations)
    cut = 4 * GRID[0] * GRID[1]
    penalties = (1e-4, 1e-2, 1.0, 10.0)
    train, validation = (
        SufficientStatistics.from_tokens(x[:cut], labels[:cut]),
        SufficientStatistics.from_tokens(x[cut:], labels[cut:]),
    )
    probes = fit_ridge(RidgePath.from_statistics(train), validation, penalties)
    unit = x[:cut].var(0).mean()
    for label, probe in enumerate(probes):
        errors = []
        for penalty in penalties:
            model = Ridge(alpha=penalty * unit * cut).fit(x[:cut], labels[:cut, label])
            errors.append(((model.predict(x[cut:]) - labels[cut:, label]) ** 2).mean())
        assert probe.penalty == penalties[int(np.argmin(errors))]

    probe = fit_logistic(
        x[:cut],
        labels[:cut, 0],
        x[cut:],
        labels[cut:, 0],
        (1e-3, 1e-1),
        RidgePath.from_statistics(train),
        0,
    )
    losses = {}
    for penalty in (1e-3, 1e-1):
        w, b = LogisticPath(x[:cut], labels[:cut, 0]).solve(
            penalty * unit, (np.zeros(CHANNELS), 0.0)
        )
        losses[penalty] = logistic_loss(x[cut:], labels[cut:, 0], w, b)
    assert probe.penalty == min(losses, key=losses.__getitem__)


def test_moments_add_up_and_tell_the_error(data):
    activations, _, depth = data
    x, y = token_rows(activations), block_means(depth, GRID).reshape(-1, 1)
    whole, parts = (
        SufficientStatistics.from_tokens(x, y),
        SufficientStatistics.from_tokens(x[:40], y[:40])
        + SufficientStatistics.from_tokens(x[40:], y[40:]),
    )
    for name in ("n", "x", "y", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    weight, bias = np.linspace(-1, 1, CHANNELS)[:, None], np.array([0.4])
    direct = ((y[:, 0] - x @ weight[:, 0] - 0.4) ** 2).mean()
    assert whole.error(weight, bias)[0] == pytest.approx(direct)
    with pytest.raises(ValueError, match="no tokens"):
        RidgePath.from_statistics(SufficientStatistics.from_tokens(x[:0], y[:0]))


def test_adam_repeats_the_papers_loop(data):
    """The paper's protocol written out plainly: full-size predictions, one epoch at a time."""
    activations, mask, depth = data
    for target, foreground in ((mask, True), (depth, False)):
        probe = fit_adam(activations, target, foreground, seed=4, epochs=3)
        generator = torch.Generator().manual_seed(4)
        bound = CHANNELS**-0.5
        outputs = 2 if foreground else 1
        layer = torch.nn.Linear(CHANNELS, outputs, bias=not foreground)
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
            spare = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
            if not foreground:
                layer.bias.copy_(spare)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        x = torch.tensor(activations, dtype=torch.float32)
        criterion = torch.nn.CrossEntropyLoss() if foreground else torch.nn.HuberLoss(delta=1.0)
        for _ in range(3):
            order = torch.randperm(N, generator=generator)
            for a in range(0, N, 4):
                index = order[a : a + 4]
                big = layer(x[index]).repeat_interleave(2, 1).repeat_interleave(3, 2)
                if foreground:
                    loss = criterion(big.reshape(-1, 2), torch.tensor(target)[index].long().ravel())
                else:
                    wanted = torch.tensor(target, dtype=torch.float32)[index]
                    loss = criterion(big[..., 0], wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        weight = layer.weight.detach().numpy()
        expected = weight[1] - weight[0] if foreground else weight[0]
        np.testing.assert_allclose(probe.weight, expected, atol=1e-6)


def test_a_probe_predicts_by_hand():
    probe = LinearProbe(np.array([2.0, -1.0]), 0.5, 1.0)
    activations = np.array([[[[1, 2], [3, 4]]]], dtype=np.float16)
    assert probe.predict(activations).tolist() == [[[0.5, 2.5]]]


def test_a_penalty_too_weak_for_rounding_gives_the_least_squares_weights_of_least_norm():
    """A layer of rank one: without a penalty to speak of, no Cholesky factor exists."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=400)
    x = np.outer(signal, [3.0, 1.0, 2.0, 0.1])
    weight, bias = RidgePath.from_statistics(
        SufficientStatistics.from_tokens(x, signal[:, None])
    ).solve(1e-30)
    expected = np.linalg.pinv(x, rcond=1e-8) @ signal
    np.testing.assert_allclose(x @ weight[:, 0] + bias[0], signal, atol=1e-4)
    np.testing.assert_allclose(weight[:, 0], expected, atol=1e-4)


def test_sums_of_many_blocks_of_half_precision_equal_numpys():
    """More rows than go at once, in float16, with a mean far from zero."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5000, 7)) * 0.5 + 20).astype(np.float16)
    y = rng.normal(size=(5000, 2))
    rows = np.column_stack([x.astype(float), np.ones(5000), y])
    found = SufficientStatistics.from_tokens(x, y)
    np.testing.assert_allclose(found.gram, rows.T @ rows, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(float).T, bias=True), rtol=1e-9)


def test_a_constant_layer_gives_the_mean_label():
    x, y = np.ones((8, 3)), np.arange(8.0)[:, None]
    weight, bias = RidgePath.from_statistics(SufficientStatistics.from_tokens(x, y)).solve(1e-3)
    np.testing.assert_allclose(weight, 0, atol=1e-12)
    assert bias[0] == pytest.approx(3.5)
