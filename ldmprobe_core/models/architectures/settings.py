"""Refusal of study settings that a model's architecture cannot use or has no use for.

A setting without effect would give the same computation another hash, hence a second run.
"""

from __future__ import annotations

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.study.schema import Study


def check_settings(architecture: Architecture, study: Study) -> tuple[str, ...]:
    """Check a study's model, sampling and prompt settings against its architecture.

    Returns:
        notes about settings that have no effect, one sentence each.

    Raises:
        UserError: a setting that the architecture has no use for, or a config that its pipeline
            cannot use.
    """
    architecture.check_vae()
    channels = architecture.vae["latent_channels"]
    if architecture.latent_channels != channels:
        raise UserError(
            f"model: the {architecture.denoiser} of {architecture.source} takes latents of "
            f"{architecture.latent_channels} channels, and the VAE has {channels}. Fix: use "
            "components of one text-to-image model"
        )
    name = architecture.pipeline_name
    height, width = architecture.size
    if height % architecture.size_multiple or width % architecture.size_multiple:
        raise UserError(
            f"model: a {name} takes images whose sides are multiples of "
            f"{architecture.size_multiple} pixels, and those of {architecture.source} are "
            f"{height} x {width}. Fix: correct the sample_size of its {architecture.denoiser}"
        )
    if study.model.attention_slicing and not hasattr(architecture.network, "set_attention_slice"):
        raise UserError(
            f"model.attention_slicing is true, but the attention of a {name} cannot be sliced. "
            "Fix: set it to false"
        )
    steps = study.sampling.steps
    if steps < architecture.min_steps:
        raise UserError(
            f"sampling.steps: a {name} skips the scheduler's step if there is only one ({steps}). "
            f"Fix: set it to {architecture.min_steps} or more"
        )
    return _check_guidance(architecture, study)


def _check_guidance(architecture: Architecture, study: Study) -> tuple[str, ...]:
    scale, negative = study.sampling.guidance, study.prompts.negative
    if study.images is not None:
        return ()
    guidance = architecture.guidance(scale, negative)
    if negative is not None and guidance.batch_copies * guidance.calls_per_step == 1:
        raise UserError(
            f"prompts.negative: the {architecture.denoiser} of {architecture.source} takes the "
            f"guidance scale as an input and no negative prompt ({negative!r:.60}). Fix: leave it "
            "out"
        )
    if scale != 1 and not architecture.uses_guidance(negative):
        return (
            f"sampling.guidance has no effect ({scale:g}): the {architecture.denoiser} takes no "
            "guidance scale, and classifier-free guidance needs prompts.negative here",
        )
    return ()


def dry_run_problem(architecture: Architecture, error: Exception) -> UserError:
    """Error for a denoiser that fails when it is called as its pipeline calls it."""
    reason = str(error).strip().partition("\n")[0]
    problem = f"{type(error).__name__}: {reason:.120}"
    return UserError(
        f"model: the {architecture.denoiser} of {architecture.source} cannot be called as a "
        f"{architecture.pipeline_name} calls it ({problem}). Fix: correct its config.json, or use "
        "a model of this pipeline class"
    )
