"""Check of a study's settings against the architecture of its model.

Settings without effect are refused too.  They would change the hash of the study, and the same
computation would be repeated as a new run.
"""

from __future__ import annotations

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.study.schema import Study


def check_settings(architecture: Architecture, study: Study) -> tuple[str, ...]:
    """Check that the model's architecture supports a study's model, sampling and prompt settings.

    Returns:
        warnings about settings that have no effect on the images, one sentence each.

    Raises:
        UserError: the architecture does not support a setting, or its pipeline cannot use a config
            of the model.
    """
    architecture.check_vae()
    _check_sizes(architecture)
    channels = architecture.vae["latent_channels"]
    if architecture.latent_channels != channels:
        raise UserError(
            f"model: the {architecture.denoiser} of {architecture.source} takes latents of "
            f"{architecture.latent_channels} channels, and the VAE has {channels} latent channels. "
            "Fix: use components of one text-to-image model"
        )
    # A transformer's pipeline drops what a model with a learned variance predicts beside the noise.
    predicted = architecture.config.get("out_channels", channels)
    if architecture.denoiser == "unet" and predicted != channels:
        raise UserError(
            f"model: the unet of {architecture.source} predicts {predicted} channels (out_channels "
            f"in its config) for latents of {channels}. Fix: use a model that predicts one value "
            "for each latent, without a learned variance"
        )
    name = architecture.pipeline_name
    height, width = architecture.size
    if height % architecture.size_multiple or width % architecture.size_multiple:
        raise UserError(
            f"model: the images of {architecture.source} have {height} x {width} pixels, but a "
            f"{name} needs multiples of {architecture.size_multiple}. Fix: correct the sample_size "
            f"of its {architecture.denoiser}"
        )
    if study.model.attention_slicing and not hasattr(architecture.network, "set_attention_slice"):
        raise UserError(
            f"model.attention_slicing is true, but the attention of a {name} cannot be sliced. "
            "Fix: set model.attention_slicing to false"
        )
    steps = study.sampling.steps
    if steps < architecture.min_steps:
        raise UserError(
            f"sampling.steps is {steps}, but a {name} needs at least {architecture.min_steps}, "
            "because with fewer it does not use the result of every step. Fix: set sampling.steps "
            f"to {architecture.min_steps} or more"
        )
    return _check_guidance(architecture, study)


def _check_sizes(architecture: Architecture) -> None:
    """Check that the model's configs give positive sizes of latents, images and token grid."""
    try:
        sizes = (*architecture.latent, *architecture.size, architecture.latent_channels)
        grid = architecture.grid
        usable = min(*sizes, grid.height, grid.width) > 0
        problem = f"latents of {architecture.latent}, images of {architecture.size}"
    except UserError:
        raise
    # Wrong values in a config raise exceptions of many types, so all are caught.
    except Exception as error:
        usable, problem = False, f"{type(error).__name__}: {error!s:.80}"
    if not usable:
        raise UserError(
            f"model: the configs of {architecture.source} give no usable sizes ({problem}). Fix: "
            f"correct block_out_channels of the VAE and the sizes of the {architecture.denoiser}"
        )


def _check_guidance(architecture: Architecture, study: Study) -> tuple[str, ...]:
    """Check a study's guidance scale and negative prompt; return warnings, one sentence each."""
    scale, negative = study.sampling.guidance, study.prompts.negative
    if study.images is not None:
        return ()
    if negative is not None and not architecture.takes_negative:
        raise UserError(
            f"prompts.negative: a {architecture.pipeline_name} takes no negative prompt "
            f"({negative!r:.60}). Fix: leave prompts.negative out"
        )
    guidance = architecture.guidance(scale, negative)
    if negative is not None and guidance.batch_copies * guidance.calls_per_step == 1:
        raise UserError(
            f"prompts.negative: the {architecture.denoiser} of {architecture.source} cannot use a "
            f"negative prompt ({negative!r:.60}), because it takes the guidance scale as an input. "
            "Fix: leave prompts.negative out"
        )
    if scale != 1 and not architecture.uses_guidance(negative):
        without = "classifier-free guidance needs prompts.negative here"
        if not architecture.takes_negative:
            without = "its pipeline samples without classifier-free guidance"
        return (
            f"sampling.guidance has no effect ({scale:g}): the {architecture.denoiser} takes no "
            f"guidance scale, and {without}",
        )
    return ()


def dry_run_problem(architecture: Architecture, error: Exception) -> UserError:
    """Build the error for a denoiser that failed in a test call with the pipeline's arguments.

    Args:
        architecture: architecture of the model.
        error: exception that the call of the denoiser raised.
    """
    reason = str(error).strip().partition("\n")[0]
    problem = f"{type(error).__name__}: {reason:.120}"
    return UserError(
        f"model: the {architecture.denoiser} of {architecture.source} cannot be called as a "
        f"{architecture.pipeline_name} calls it ({problem}). Fix: correct its config.json, or use "
        "a model of this pipeline class"
    )
