"""Tests of capture and fit_probe against hand-written hooks and scikit-learn."""

import numpy as np
import pytest
import tiny_models
import torch
import xarray as xr
from diffusers import StableDiffusionPipeline
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

import ldmprobe as lp

PROMPTS = ["a red ball on a gray floor", "a blue car on a black floor"]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tiny_models.write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_capture_keeps_what_a_hook_sees_of_the_conditional_half(pipe):
    captured = lp.capture(pipe, PROMPTS, layers=[LAYER], steps=3, seeds=[4, 5], guidance=2.0)
    seen = []
    module = dict(pipe.unet.named_modules())[LAYER]
    hook = module.register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    images = pipe(
        prompt=PROMPTS,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(s) for s in (4, 5)],
        output_type="np",
    ).images
    hook.remove()
    assert captured[LAYER].dims == ("sample", "step", "y", "x", "channel")
    assert list(captured) == [LAYER]
    for step, output in enumerate(seen, 1):
        tokens = output[2:].to(torch.float16).numpy()
        values = captured[LAYER].sel(step=step).values
        np.testing.assert_array_equal(values.reshape(tokens.shape), tokens)
    assert np.abs(captured.images.astype(int) - np.rint(images * 255)).max() <= 1


def test_capture_refuses_seeds_that_do_not_match(pipe):
    with pytest.raises(lp.UserError, match="number of seeds is 1 for 2 prompts"):
        lp.capture(pipe, PROMPTS, seeds=[1])
    with pytest.raises(lp.UserError, match="matches no module"):
        lp.capture(pipe, PROMPTS, layers="nowhere")


@pytest.mark.parametrize(("arguments", "words"), [
    ({"prompts": PROMPTS[0]}, "prompts: .* is not a list"),  # not an image of each letter
    ({"prompts": [None]}, "prompts: None is not text"),
    ({"prompts": []}, "seeds: the number of seeds is 0 for 0 prompts"),
    ({"seeds": 3}, "seeds: 3 is not a list"),
    ({"seeds": [0, -1]}, "seeds: -1 is no seed"),
    ({"seeds": [0, 2**63]}, "seeds: 9223372036854775808 is no seed"),
    ({"seeds": [0, 0.5]}, "seeds: 0.5 is no seed"),
    ({"steps": 0}, "steps is 0: the value is too small"),
    ({"steps": "3"}, "steps is '3': this is not a whole number"),
    ({"guidance": float("nan")}, "guidance is nan: this is not a finite number"),
    ({"guidance": 0}, "guidance is 0: the value is too small"),
    ({"layers": ()}, "layers is .*: the list is too short"),
    ({"layers": None}, "layers is null: this is not a list"),
    ({"negative": ["mud"]}, "negative: .* is not text"),
    ({"negative": "mud", "guidance": 1}, "negative: it has no effect without guidance"),
])  # fmt: skip
def test_capture_refuses_arguments_that_it_would_take_for_others(pipe, arguments, words):
    with pytest.raises(lp.UserError, match=rf"^{words}.*Fix: "):
        lp.capture(pipe, **{"prompts": PROMPTS, "layers": [LAYER], "steps": 1} | arguments)


def test_capture_refuses_a_network_with_active_dropout(pipe):
    dropout = next(m for m in pipe.unet.modules() if isinstance(m, torch.nn.Dropout))
    before, dropout.p = dropout.p, 0.5
    dropout.train()
    try:
        with pytest.raises(lp.UserError, match=r"its unet is in training mode.*Fix: "):
            lp.capture(pipe, PROMPTS, layers=[LAYER], steps=1)
    finally:
        dropout.p = before
        dropout.eval()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3, 4, 5)).astype(np.float32)
    y = (x @ rng.normal(size=5)).repeat(2, 1).repeat(2, 2) + rng.normal(size=(12, 6, 8))
    return x, y


def pixels(x):
    return x.repeat(2, 1).repeat(2, 2).reshape(-1, x.shape[-1]).astype(float)


def test_fit_probe_ridge_equals_scikit_learn_on_pixels(data):
    x, y = data
    probe = lp.fit_probe(x, y, penalties=[1e-2])
    rows = pixels(x)
    alpha = 1e-2 * x.reshape(-1, 5).astype(float).var(0).mean() * len(rows)
    expected = Ridge(alpha=alpha).fit(rows, y.ravel())
    np.testing.assert_allclose(probe.weight, expected.coef_, rtol=1e-8)
    assert probe.bias == pytest.approx(expected.intercept_, rel=1e-8)


def test_fit_probe_reads_named_dimensions_and_samples(data):
    x, y = data
    expected = lp.fit_probe(x, y, penalties=[1e-2])
    named = xr.DataArray(x, dims=("sample", "y", "x", "channel"), coords={"sample": range(12)})
    maps = xr.DataArray(y, dims=("sample", "y", "x"), coords={"sample": range(12)})
    turned = named.transpose("channel", "x", "sample", "y"), maps.transpose("x", "sample", "y")
    probe = lp.fit_probe(*turned, penalties=[1e-2])
    np.testing.assert_allclose(probe.weight, expected.weight, rtol=1e-10)
    with pytest.raises(lp.UserError, match=r"samples .11, 10, 9, 8, .* not those of the .*Fix: "):
        lp.fit_probe(named, maps.isel(sample=slice(None, None, -1)))


def test_fit_probe_logistic_equals_scikit_learn_on_pixels(data):
    x, y = data
    mask = y > 0.3
    probe = lp.fit_probe(x, mask, kind="logistic", penalties=[1e-2])
    rows = pixels(x)
    strength = 1e-2 * x.reshape(-1, 5).astype(float).var(0).mean() * len(rows)
    expected = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=1000).fit(rows, mask.ravel())
    np.testing.assert_allclose(probe.weight, expected.coef_[0], rtol=1e-4, atol=1e-6)
    predicted = probe.predict(x).repeat(2, 1).repeat(2, 2)

    def mean_dice(cut):
        return np.mean(
            [f1_score(m.ravel(), p.ravel() > cut) for m, p in zip(mask, predicted, strict=True)]
        )

    candidates = [predicted.min() - 1, *np.quantile(probe.predict(x), np.arange(64) / 64)]
    assert mean_dice(probe.cut) == pytest.approx(max(map(mean_dice, candidates)), abs=1e-12)


def test_fit_probe_chooses_the_penalty_with_the_least_validation_error(data):
    x, y = data
    penalties = (1e-4, 1e-1, 10.0)
    probe = lp.fit_probe(x, y, penalties=penalties, validation=0.25, seed=3)
    order = np.random.default_rng(3).permutation(12)
    choose, train = order[:3], order[3:]
    tokens = y.reshape(12, 3, 2, 4, 2).mean((2, 4))
    rows, unit = x[train].reshape(-1, 5).astype(float), x[train].reshape(-1, 5).astype(float).var(0)
    errors = []
    for penalty in penalties:
        model = Ridge(alpha=penalty * unit.mean() * len(rows)).fit(rows, tokens[train].ravel())
        gap = model.predict(x[choose].reshape(-1, 5).astype(float)) - tokens[choose].ravel()
        errors.append(np.square(gap).mean())
    assert probe.penalty == penalties[int(np.argmin(errors))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[0], y), "activations: their shape does not match that of the labels"),
        (lambda x, y: (x, y[:, :5]), "do not divide evenly into 3 x 4 tokens"),
        (
            lambda x, y: (x, y.repeat(2, 1)),
            r"stand for 4 x 2 pixels .*no square.*channels come last",
        ),
        (lambda x, y: (x * np.nan, y), "values are not finite"),
        (lambda x, y: (x[:1], y[:1]), "too few samples for training and validation"),
    ],
)
def test_fit_probe_refuses_what_does_not_fit(data, change, words):
    with pytest.raises(lp.UserError, match=words):
        lp.fit_probe(*change(*data))


@pytest.mark.parametrize(("settings", "words"), [
    ({"penalties": []}, "penalties: not a list of numbers"),
    ({"penalties": ["a"]}, "penalties: not a list of numbers"),
    ({"penalties": [1, -1]}, "penalties: not all are finite and above 0"),
    ({"penalties": [0.1, float("nan")]}, "penalties: not all are finite and above 0"),
    ({"validation": float("nan")}, "validation: not a fraction"),
    ({"validation": 2}, "validation: not a fraction"),
    ({"validation": 0}, "validation: not a fraction between 0 and 1 .0.. Fix: give one above 0"),
    ({"validation": 1.0}, "validation: not a fraction between 0 and 1"),
    ({"validation": "x"}, "validation: not a fraction"),
    ({"seed": -1}, "seed: not a whole number"),
    ({"seed": 0.5}, "seed: not a whole number"),
    ({"kind": "logistic"}, "labels: a logistic probe needs a mask"),
])  # fmt: skip
def test_fit_probe_refuses_settings_out_of_range(data, settings, words):
    x, y = data
    with pytest.raises(lp.UserError, match=words if "Fix" in words else rf"{words}.*Fix: "):
        lp.fit_probe(x, 255 * y, **settings)


@pytest.mark.parametrize("change", [
    lambda a: a * 1j, lambda a: a.astype(object), lambda a: a[..., :0], lambda a: a.astype("U3"),
])  # fmt: skip
def test_fit_probe_refuses_arrays_without_real_numbers(data, change):
    x, y = data
    with pytest.raises(lp.UserError, match=r"activations: .* empty or not of real numbers.*Fix: "):
        lp.fit_probe(change(x), y)
    if change(y).size:
        with pytest.raises(lp.UserError, match=r"labels: .* empty or not of real numbers.*Fix: "):
            lp.fit_probe(x, change(y))


@pytest.mark.parametrize("images", [
    np.zeros((1, 64, 64, 3)), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64, 4), np.uint8),
    np.zeros((1, 64, 64), np.uint8), np.zeros((0, 64, 64, 3), np.uint8), [[1]], None,
    np.zeros((1, 64, 64, 3), np.int64),
])  # fmt: skip
def test_a_loaded_labeler_refuses_arrays_that_are_not_images(images):
    with pytest.raises(lp.UserError, match=r"images: not one or more images .*Fix: convert"):
        lp.load_labeler("depth", "tabletop", device="cpu")(images)


@pytest.mark.parametrize(
    "arguments",
    [("depth", None), (None, "tabletop"), ("depth", "tabletop", 3), ("nope", "tabletop")],
)
def test_load_labeler_refuses_names_that_are_none(arguments):
    with pytest.raises(lp.UserError, match=r"^[a-z.]+.*Fix: (give|use) "):
        lp.load_labeler(*arguments)


def test_load_labeler_of_a_vector_names_its_components():
    parts = r"use one of the properties normals_x, normals_y, normals_z$"
    with pytest.raises(lp.UserError, match=rf"labels\.normals: .* \(tabletop\)\. Fix: {parts}"):
        lp.load_labeler("normals", "tabletop")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert lp.load_labeler("normals_x", "tabletop", device="cpu")(images).shape == (1, 32, 32)


def test_load_labeler_of_no_property_has_no_empty_list():
    with pytest.raises(lp.UserError, match=r"Fix: use package\.module:function$"):
        lp.load_labeler("nonsense", "tabletop")


def test_load_labeler_reads_images(pipe):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    depth = lp.load_labeler("depth", "tabletop", device="cpu")(images)
    assert (depth.shape, depth.dtype) == ((2, 64, 64), np.float32)
    with pytest.raises(lp.UserError, match="no such labeler"):
        lp.load_labeler("depth", "nothing")


def test_capture_orders_layers_as_the_network_calls_them(pipe):
    """As a run does; a UNet declares its middle block last."""
    captured = lp.capture(pipe, PROMPTS, layers="resnets", steps=1)
    called = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in pipe.unet.named_modules()
        if name in captured
    ]
    pipe(prompt=PROMPTS, num_inference_steps=1, guidance_scale=2.0, output_type="latent")
    for hook in hooks:
        hook.remove()
    assert len(captured) > 4
    assert list(captured) == called[: len(captured)]
    declared = [name for name, _ in pipe.unet.named_modules() if name in captured]
    assert declared != called[: len(captured)]
