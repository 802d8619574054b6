"""Sampling with edited activations."""

from contextlib import contextmanager

import numpy as np
import pytest
import tiny_models
import torch
from intervention_helpers import direction_in, loaded_sampler
from model_helpers import LAYER, architecture_study, load_sampler

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.changes import make_change, patch_from
from ldmprobe_core.interventions.editor import Editor, sample_edited
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import target_maps
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.study.samples import make_samples


def editor_of(run, spec, targets, cells=None):
    plan = plan_intervention(run, spec)
    change = make_change(
        spec, plan.kind, lambda step, layer: direction_in(run, spec, step, layer), targets,
        spec.dose_axis[0],
    )  # fmt: skip
    return Editor(loaded_sampler(run), plan.sites[0].cells if cells is None else cells, change)


def test_editor_at_strength_zero_gives_the_unedited_images_bit_for_bit(run):
    sampler = loaded_sampler(run)
    spec = Intervention(samples=4, strength=0.0, layers=("*", "latents"), steps=3)
    plan = plan_intervention(run, spec)
    samples = [run.samples[i] for i in plan.samples]
    targets = target_maps(label_set(run).maps["foreground"][plan.samples], spec.targets)[0]
    unedited = sample_edited(sampler, samples, None)
    editor = editor_of(run, spec, targets)
    np.testing.assert_array_equal(sample_edited(sampler, samples, editor), unedited)
    full = spec.model_copy(update={"strength": 1.0})
    editor = editor_of(run, full, 1 - targets)
    assert (sample_edited(sampler, samples, editor) != unedited).any()
    assert not any(m._forward_hooks for m in sampler.denoiser.modules())


def test_editor_with_the_samples_own_activations_gives_the_unedited_images(run):
    """Stored activations are float16, so images agree to a level or two."""
    sampler = loaded_sampler(run)
    plan = plan_intervention(run, Intervention(samples=4, layers=("*",), steps=3))
    samples = [run.samples[i] for i in plan.samples]

    def own(step, layer):
        tokens = run.read(f"activations/{layer}", "activation", step=step - 1)
        return tokens[plan.samples]

    editor = Editor(sampler, plan.sites[0].cells, patch_from(own))
    unedited = sample_edited(sampler, samples, None).astype(int)
    assert np.abs(sample_edited(sampler, samples, editor) - unedited).max() <= 2

    def another(step, layer):
        return own(step, layer)[::-1].copy()

    editor = Editor(sampler, plan.sites[0].cells, patch_from(another))
    assert np.abs(sample_edited(sampler, samples, editor) - unedited).max() > 2


def test_editor_edits_the_conditional_half_of_the_denoisers_input(run):
    """The inputs of the denoiser are recorded after the edit, which adds 1 to every latent.

    The model's scheduler divides latents by sqrt(sigma^2 + 1) to give the denoiser's input.
    """
    sampler = loaded_sampler(run)
    sample = [run.samples[0]]
    seen = {True: [], False: []}
    for edited in (True, False):
        cells = [(1, "latents")] if edited else []
        editor = Editor(sampler, cells, lambda step, layer, tokens: tokens + 1)
        with editor():
            hook = sampler.denoiser.register_forward_pre_hook(
                lambda m, args, kwargs, inputs=seen[edited]: inputs.append(
                    (kwargs["sample"] if "sample" in kwargs else args[0]).clone()
                ),
                with_kwargs=True,
            )
            with torch.no_grad():
                sampler.pipeline(
                    prompt=[sample[0].prompt], num_inference_steps=3, guidance_scale=2.0,
                    generator=[torch.Generator().manual_seed(sample[0].seed)], output_type="latent",
                )  # fmt: skip
            hook.remove()
    difference = seen[True][0] - seen[False][0]
    torch.testing.assert_close(difference[0], torch.zeros_like(difference[0]))
    factor = 1 / (sampler.pipeline.scheduler.sigmas[0] ** 2 + 1) ** 0.5
    expected = torch.full_like(difference[1], float(factor))
    torch.testing.assert_close(difference[1], expected, rtol=1e-5, atol=1e-5)


def test_editor_makes_the_probe_predict_the_target_in_edited_steps_only(run):
    """Every call of an edited layer is recorded after the edit, and read by the stored probe."""
    sampler = loaded_sampler(run)
    labels = label_set(run)
    spec = Intervention(samples=3, layers=("mid_block*",), steps=2, confidence=0.9, doses=())
    plan = plan_intervention(run, spec)
    (layer,) = plan.sites[0].layers
    samples = [run.samples[i] for i in plan.samples]
    targets = target_maps(labels.maps["foreground"][plan.samples], spec.targets)[0]
    editor = editor_of(run, spec, targets)
    module = dict(sampler.denoiser.named_modules())[layer]
    outputs = []
    with editor():
        module.register_forward_hook(lambda m, i, o: outputs.append(o.clone()))
        with torch.no_grad():
            sampler.pipeline(
                prompt=[s.prompt for s in samples],
                num_inference_steps=3,
                guidance_scale=2.0,
                generator=[torch.Generator().manual_seed(s.seed) for s in samples],
                output_type="latent",
            )
    module._forward_hooks.clear()
    side = int(outputs[0].shape[1] ** 0.5)
    share = targets.reshape(3, side, 16 // side, side, 16 // side).mean((2, 4))
    expected = np.log(np.clip(share, 0.1, 0.9) / (1 - np.clip(share, 0.1, 0.9)))
    probes = run.open(f"probes/{layer}").sel(property="foreground", kind="logistic")
    for step, output in enumerate(outputs, start=1):
        weight = probes.weight.sel(step=step).values
        predicted = output[3:].double().numpy() @ weight + float(probes.bias.sel(step=step))
        predicted = predicted.reshape(3, side, side) + probes.position.sel(step=step).values
        error = np.abs(predicted - expected).max()
        assert (error < 1e-4) == (step <= 2)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([(1, "down_blocks.0"), (4, "mid_block")], "mid_block ran 0 times at step 4"),
        ([(2, "unused"), (2, "mid_block")], "unused ran 0 times at step 2"),
        ([(1, "repeated")], "repeated ran 2 times at step 1"),
    ],
)
def test_editor_refuses_a_layer_that_does_not_run_once_in_an_edited_step(run, cells, message):
    sampler = loaded_sampler(run)
    denoiser = sampler.denoiser
    denoiser.add_module("unused", torch.nn.Identity())
    denoiser.add_module("repeated", torch.nn.Identity())
    hook = denoiser.mid_block.register_forward_hook(
        lambda m, i, output: denoiser.repeated(denoiser.repeated(output))
    )
    editor = Editor(sampler, cells, lambda step, layer, tokens: tokens)
    try:
        with pytest.raises(UserError, match=rf"layers: {message}, .*\. Fix: leave this layer out"):
            sample_edited(sampler, run.samples[:1], editor)
    finally:
        hook.remove()
        del denoiser.unused, denoiser.repeated


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("layer", ["latents", "mid_block"])
def test_editor_refuses_edits_that_are_not_finite(run, layer, value):
    sampler = loaded_sampler(run)
    editor = Editor(sampler, [(2, layer)], lambda step, name, tokens: tokens * value)
    with pytest.raises(UserError, match=rf"activations of {layer} at step 2 are not finite"):
        sample_edited(sampler, run.samples[:1], editor)
    assert not any(m._forward_hooks for m in sampler.denoiser.modules())


def test_editor_accepts_non_finite_activations_that_it_only_reads(run):
    sampler = loaded_sampler(run)
    denoiser, seen = sampler.denoiser, []
    denoiser.add_module("aside", torch.nn.Identity())
    hook = denoiser.mid_block.register_forward_hook(
        lambda m, i, output: (denoiser.aside(output * float("inf")), None)[1]
    )

    def read(step, layer, tokens):
        seen.append(bool(torch.isfinite(tokens).any()))
        return tokens

    try:
        sample_edited(sampler, run.samples[:1], Editor(sampler, [(2, "aside")], read))
        assert seen == [False]
        editor = Editor(sampler, [(2, "aside")], lambda step, layer, tokens: tokens * 1.0)
        with pytest.raises(UserError, match="activations of aside at step 2 are not finite"):
            sample_edited(sampler, run.samples[:1], editor)
    finally:
        hook.remove()
        del denoiser.aside


@pytest.mark.parametrize("negative", [None, "a car"])
def test_editor_edits_packed_latents_as_a_map(tmp_path, negative):
    """Flux packs 2 x 2 latents into a token; the edit adds 1 to one channel of one latent."""
    folder = tiny_models.write("flux", tmp_path / "flux")
    study = architecture_study(folder, "flux", prompts={"negative": negative})
    sampler, architecture = load_sampler(study), detect_architecture(folder)
    sample = make_samples(study)[:1]
    inputs = {}
    for edited in (False, True):

        def change(step, layer, tokens):
            assert (step, layer, tuple(tokens.shape[:3])) == (2, "latents", (1, 8, 8))
            tokens = tokens.clone()
            tokens[0, 5, 2, 1] += 1
            return tokens

        calls = inputs[edited] = []
        editor = Editor(sampler, [(2, "latents")] if edited else [], change)
        with record_inputs(sampler.denoiser, calls):
            sample_edited(sampler, sample, editor)
    # With a negative prompt, the second call of a step is the unconditional one.
    index = 1 if negative is None else 2
    before, after = (architecture.unpack(inputs[edited][index]) for edited in (False, True))
    expected = before.clone()
    expected[0, 1, 5, 2] += 1
    torch.testing.assert_close(after, expected)
    assert torch.equal(inputs[True][0], inputs[False][0])


def test_editor_of_a_head_gives_the_images_of_weights_without_that_head(tiny_model):
    """The output projection's weights for the head's channels are set to zero by hand."""
    layer = f"{LAYER}@head1"
    sampling = {"guidance": 1.0}
    study = architecture_study(
        tiny_model, "sd1", sampling=sampling, capture={"layers": [layer, f"{LAYER}@query"]}
    )
    sampler, sample = load_sampler(study), make_samples(study)[:2]
    unedited = sample_edited(sampler, sample, None)
    cells = [(step, layer) for step in (1, 2, 3)]
    editor = Editor(sampler, cells, lambda step, name, tokens: torch.zeros_like(tokens))
    without_head = sample_edited(sampler, sample, editor)
    attention = sampler.denoiser.get_submodule(LAYER)
    with torch.no_grad():
        attention.to_out[0].weight[:, 8:16] = 0
    np.testing.assert_array_equal(without_head, sample_edited(sampler, sample, None))
    assert (without_head != unedited).any()
    same = Editor(sampler, [(1, f"{LAYER}@query")], lambda step, name, tokens: tokens)
    np.testing.assert_array_equal(sample_edited(sampler, sample, same), without_head)


@contextmanager
def record_inputs(denoiser, calls):
    """Record the hidden states that a denoiser's forward method receives."""
    forward = denoiser.forward

    def recorded(*args, **kwargs):
        calls.append(kwargs["hidden_states"].clone())
        return forward(*args, **kwargs)

    denoiser.forward = recorded
    try:
        yield
    finally:
        del denoiser.forward
