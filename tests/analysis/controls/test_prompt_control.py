"""Maps predicted from prompts, against scikit-learn and on maps that the prompt determines."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.controls.prompt_control import control_grid, prompt_scores
from ldmprobe_core.probing.label_set import LabelSet


@pytest.fixture
def data():
    """Embeddings of 40 prompts; depth depends on them, foreground is a disk of random size."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(40, 5)).astype(np.float32)
    basis = rng.normal(size=(5, 8, 8))
    depth = np.einsum("nc,cyx->nyx", embedding, basis) + rng.normal(0, 0.3, (40, 8, 8))
    y, x = np.mgrid[:8, :8] - 3.5
    foreground = np.hypot(y, x) < rng.uniform(1, 4, 40)[:, None, None]
    maps = {"depth": depth, "foreground": foreground}
    means = {prop: values[:20].mean(0, dtype=float) for prop, values in maps.items()}
    return embedding, LabelSet(maps, means, np.arange(20), np.arange(20, 28), np.arange(20, 40))


def test_control_grid_divides_the_image():
    assert control_grid((128, 128)) == (16, 16)
    assert control_grid((100, 66)) == (10, 11)
    assert control_grid((17, 8)) == (1, 8)


def test_prompt_scores_equal_ridge_on_residual_maps(data):
    embedding, labels = data
    depth, mean = labels.maps["depth"], labels.means["depth"]
    penalties = (1e-3, 1e-1, 10.0)
    x, y = embedding.astype(float), (depth - mean).reshape(40, -1)
    unit = x[:20].var(0).mean()
    fits = [Ridge(alpha=p * unit * 20).fit(x[:20], y[:20]) for p in penalties]
    fit = min(fits, key=lambda f: ((f.predict(x[20:28]) - y[20:28]) ** 2).mean())
    predicted = fit.predict(x[20:]).reshape(-1, 8, 8) + mean
    expected = [
        stats.spearmanr(p.ravel(), t.ravel()).statistic
        for p, t in zip(predicted, depth[20:], strict=True)
    ]
    found = prompt_scores(embedding, labels, "depth", penalties)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert found[0].mean() > 0.9


def test_prompt_scores_of_a_mask_that_prompts_do_not_tell_are_those_of_position(data):
    embedding, labels = data
    found = prompt_scores(embedding, labels, "foreground", (1e3,))
    mean = labels.means["foreground"]
    cuts = [-1, *np.unique(mean)]

    def dices(cut, masks):
        region = mean > cut
        return np.array([2 * (region & m).sum() / (region.sum() + m.sum()) for m in masks])

    masks = labels.maps["foreground"]
    best = max(cuts[:-1], key=lambda cut: dices(cut, masks[:20]).mean())
    assert found[0].mean() == pytest.approx(dices(best, masks[20:]).mean(), abs=0.02)


def test_prompt_scores_of_embeddings_that_are_not_finite_are_undefined(data):
    embedding, labels = data
    embedding[3] = np.nan
    assert np.isnan(prompt_scores(embedding, labels, "depth", (1.0,))).all()
