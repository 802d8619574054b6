"""Sampling with edited activations."""

import numpy as np
import torch
from intervention_helpers import loaded_sampler

from ldmprobe_core.interventions.directions import directions_of
from ldmprobe_core.interventions.editor import Editor, make_edit, sample_edited
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import target_maps
from ldmprobe_core.pipeline.labels import label_set


def test_editor_at_strength_zero_gives_the_unedited_images_bit_for_bit(run):
    sampler = loaded_sampler(run)
    labels = label_set(run)
    spec = Intervention(samples=4, strength=0.0, layers=("*",), steps=3)
    plan = plan_intervention(run, spec)
    samples = [run.samples[i] for i in plan.samples]
    targets = target_maps(labels.maps["foreground"][plan.samples], spec.targets)[0]
    editor = Editor(
        sampler,
        directions_of(run, spec, plan, labels),
        make_edit(spec, plan.kind, targets, None),
    )
    unedited = sample_edited(sampler, samples, None)
    np.testing.assert_array_equal(sample_edited(sampler, samples, editor), unedited)
    full = spec.model_copy(update={"strength": 1.0})
    editor.change = make_edit(full, plan.kind, 1 - targets, None)
    assert (sample_edited(sampler, samples, editor) != unedited).any()
    assert not any(m._forward_hooks for m in sampler.denoiser.modules())


def test_editor_makes_the_probe_predict_the_target_in_edited_steps_only(run):
    """Every call of an edited layer is recorded after the edit, and read by the stored probe."""
    sampler = loaded_sampler(run)
    labels = label_set(run)
    spec = Intervention(samples=3, layers=("mid_block*",), steps=2, confidence=0.9)
    plan = plan_intervention(run, spec)
    (layer,) = plan.layers
    samples = [run.samples[i] for i in plan.samples]
    targets = target_maps(labels.maps["foreground"][plan.samples], spec.targets)[0]
    directions = directions_of(run, spec, plan, labels)
    editor = Editor(sampler, directions, make_edit(spec, plan.kind, targets, None))
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
