"""An architecture and its pipeline class."""

from diffusers import StableDiffusionPipeline

import ldmprobe as lp
from ldmprobe_core.models.architectures.stable_diffusion import UNetArchitecture


class PluginPipeline(StableDiffusionPipeline):
    """Pipeline class that diffusers does not have."""


@lp.register_architecture("PluginPipeline")
class PluginArchitecture(UNetArchitecture):
    """Architecture of `PluginPipeline`, with a preset of its own."""

    pipeline_class = PluginPipeline
    load_arguments = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012
    presets = {"middle": ("mid_block.*.attn1",)}  # noqa: RUF012
