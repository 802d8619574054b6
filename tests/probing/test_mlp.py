"""The control with a hidden layer: it reads what no linear probe can, and is never the best."""

import numpy as np
from run_helpers import carry_out

from ldmprobe_core.analysis.summarize import summarise
from ldmprobe_core.probing.fitters.mlp import fit_mlp


def test_mlp_reads_a_product_that_no_linear_probe_can():
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (60, 4, 4, 16)).astype(np.float16)
    target = (x[..., 0] * x[..., 1]).astype(float)  # exclusive or
    linear = np.linalg.lstsq(x.reshape(-1, 16).astype(float), target.ravel(), rcond=None)[0]
    assert np.abs(linear).max() < 0.15
    maps = fit_mlp(x[:40], target[:40], False, epochs=400, learning_rate=3e-3)
    assert np.corrcoef(maps.predict(x[40:]).ravel(), target[40:].ravel())[0, 1] > 0.95
    masks = fit_mlp(x[:40], target[:40] > 0, True, epochs=400, learning_rate=3e-3)
    assert ((masks.predict(x[40:]) > 0) == (target[40:] > 0)).mean() > 0.95


def test_mlp_prediction_equals_one_written_out_by_hand():
    x = np.random.default_rng(1).normal(size=(6, 2, 2, 4)).astype(np.float16)
    probe = fit_mlp(x, np.ones((6, 2, 2)), False, epochs=1)
    first, _, second = probe.network
    hidden = np.maximum(x.astype(float) @ first.weight.numpy().T + first.bias.numpy(), 0)
    expected = hidden @ second.weight.numpy()[0] + float(second.bias)
    np.testing.assert_allclose(probe.predict(x), expected, rtol=1e-4, atol=1e-5)


def test_mlp_is_scored_in_a_run_and_not_chosen_as_best(tiny_study, tmp_path):
    study = tiny_study(controls={"mlp": True, "permuted_weights": False, "shuffled_labels": True})
    run = carry_out(study, str(tmp_path))
    summary = summarise(run, {}).summary
    for prop, found in summary.properties.items():
        assert found.best.kind != "mlp"
        score = run.open(f"scores/{prop}").score.sel(kind="mlp")
        here = score.sel(condition="probe", step=found.best.step, layer=found.best.layer)
        head = here.sel(metric=found.best.metric).values[here.split.values == "test"]
        if np.isfinite(head).any():
            assert np.isclose(found.controls.mlp.same_cell.mean, np.nanmean(head))
        assert np.isnan(score.sel(condition="shuffled_labels")).all()
        latents = run.open(f"scores/{prop}").score.sel(layer="latents", step=found.best.step)
        assert np.isfinite(latents.sel(condition="probe", kind="ridge")).any()
        assert found.controls.latents is not None
    assert "latents" not in run.layers
