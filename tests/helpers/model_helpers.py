"""Studies and samplers of the tiny checkpoints of every architecture."""

import torch

from ldmprobe_core.models import loading
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.files.model_folder import model_folder
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.study.loading import parse_study

CPU = torch.device("cpu")
FLOW_ARCHITECTURES = {"sd3", "flux"}
# One self-attention layer of the tiny UNet.
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


def architecture_study(folder, name, **parts):
    """Study of four prompts and three steps; keyword parts add to a section's keys."""
    content = {
        "name": name,
        "model": {"source": str(folder)},
        "prompts": {"items": [f"a ball {letter}" for letter in "abcd"]},
        "sampling": {
            "steps": 3,
            "batch": 2,
            "guidance": 2.0,
            "threads": 1,
            "scheduler": "flow" if name in FLOW_ARCHITECTURES else "ddim",
        },
        "bootstrap": {"resamples": 200},
    }
    for key, value in parts.items():
        content[key] = {**content.get(key, {}), **value}
    return parse_study(content)


def load_sampler(study):
    """Sampler of a study's model, on the CPU."""
    architecture = detect_architecture(model_folder(study.model))
    return PipelineSampler(loading.load_pipeline(study, CPU), architecture, study)


def call_unet(unet, batch, seed=0):
    """One call of the tiny UNet on seeded latents and text embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return unet(
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.tensor(500),
        torch.randn(batch, 24, 16, generator=generator),
    )
