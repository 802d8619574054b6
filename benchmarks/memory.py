"""Peak memory of a worker that generates and labels a few batches, beside what the plan foretells.

    python -m benchmarks.memory [tabletop | sd] [side]

``tabletop`` is three batches of the default study.  ``sd`` is one batch of a pipeline with Stable
Diffusion 1.4's shapes and random float32 weights, of one image of ``side`` pixels (512, or less for
less time) at 2 steps with guidance, without the permuted control; labelers are those of the default
study, but for retinex.  The process has imported what a worker of a flow has.  Where other
programs need the machine's memory, Linux drops pages of libraries, and the peak is smaller.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import AutoencoderKL, LMSDiscreteScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as Denoiser
from transformers import CLIPTextConfig, CLIPTextModel

import tasks.study  # noqa: F401  # Prefect is part of a worker's memory.
from benchmarks.figures import Figure, report
from ldmprobe_core.assets import CONFIGS
from ldmprobe_core.models.devices import peak_memory
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.model_cache import use_pipeline
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

SHAPES = CONFIGS / "stable-diffusion-v1-4"
SD = {
    "sampling.steps": 2,
    "sampling.batch": 1,
    "sampling.guidance": 7.5,
    "prompts.samples": 12,
    "trajectory.samples": 4,
    "trajectory.training": 4,
    "controls.permuted_weights": "false",
    "labels.shading": "retinex",
}


def random_pipeline(side: int) -> Any:
    """Build a pipeline with Stable Diffusion 1.4's networks, random weights and a tokenizer."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    unet = {**Denoiser.load_config(SHAPES / "unet"), "sample_size": side // 8}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(AutoencoderKL.load_config(SHAPES / "vae")),
        text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(SHAPES / "text_encoder")),
        tokenizer=tokenizer,
        unet=Denoiser.from_config(unet),
        scheduler=LMSDiscreteScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.eval().requires_grad_(False)
    return pipeline


def measure(name: str = "tabletop", side: int = 512) -> list[Figure]:
    """Generate and label a few batches, and compare the peak of this process with the plan."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        changes = {"sampling.threads": 1, **(SD if name == "sd" else {})}
        study = load_study("tabletop", [f"{key}={value}" for key, value in changes.items()])
        if name == "sd":
            study = stack.enter_context(use_pipeline(study, random_pipeline(side)))
        plan = plan_study(study)
        planned = sum(plan.memory.values())
        run = prepare_run(plan.study, folder)
        for batch in range(1 if name == "sd" else 3):
            generate_batch(run.url, batch)
            label_batch(run.url, batch)
        measured = peak_memory()["memory"]
    parts = ", ".join(f"{use} {size / 1e9:.2f}" for use, size in plan.memory.items())
    return [
        Figure("memory", f"{name}: planned", planned / 1e9, "GB", note=parts),
        Figure("memory", f"{name}: measured", measured / 1e9, "GB"),
        Figure("memory", f"{name}: measured / planned", measured / planned, "x",
               at_most=1.15, at_least=0.85),
    ]  # fmt: skip


if __name__ == "__main__":
    report(measure(*sys.argv[1:2], *(int(word) for word in sys.argv[2:3])))
