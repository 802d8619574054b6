"""The choice of a penalty against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.logistic import (
    LogisticPath,
    SoftLabels,
    fit_logistic,
    logistic_loss,
)
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.statistics import SufficientStatistics

N, GRID, SIZE, CHANNELS = 9, (3, 4), (6, 12), 5


@pytest.fixture
def data():
    """Activations (n, y, x, channel), a mask and a depth map at full size that depend on them."""
    rng = np.random.default_rng(3)
    activations = rng.normal(1, [1, 2, 0.5, 1, 3], (N, *GRID, CHANNELS))
    big = activations.repeat(2, 1).repeat(3, 2)
    signal = big @ np.array([1, -0.5, 2, 0, 0.2])
    depth = signal + rng.normal(0, 1, (N, *SIZE))
    return activations, depth > depth.mean(), depth


def token_rows(activations):
    return activations.reshape(-1, CHANNELS)


def test_chosen_penalty_has_the_least_validation_error(data):
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

    mask_labels = SoftLabels(x[:cut], labels[:cut, 0]), SoftLabels(x[cut:], labels[cut:, 0])
    probe = fit_logistic(
        *mask_labels,
        (1e-3, 1e-1),
        RidgePath.from_statistics(train),
        0,
    )
    losses = {}
    for penalty in (1e-3, 1e-1):
        w, b = LogisticPath(mask_labels[0]).solve(penalty * unit, (np.zeros(CHANNELS), 0.0))
        losses[penalty] = logistic_loss(mask_labels[1], w, b)
    assert probe.penalty == min(losses, key=losses.__getitem__)
