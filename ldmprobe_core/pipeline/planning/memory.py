"""Estimate of the memory that a worker needs, from configs alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.files.checkpoint import read_component
from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.models.sources.pipeline import PipelineSource
from ldmprobe_core.models.token_grid import images_per_decode
from ldmprobe_core.pipeline.activation_sinks import peak_activation_bytes
from ldmprobe_core.pipeline.planning.allocations import AllocationTrace, trace_call
from ldmprobe_core.pipeline.planning.labeler_sizes import labeler_bytes, labeling_bytes
from ldmprobe_core.pipeline.planning.sizes import StoredSamples
from ldmprobe_core.study.layers import VAE, LayerShape
from ldmprobe_core.study.schema import Study


@dataclass(frozen=True)
class WorkerMemory:
    """Estimate of the memory that a worker needs to generate and label images.

    Attributes:
        study: the study.
        source: source of the model.
        networks: denoiser and VAE on the meta device, in float32.
        shapes: layer name to the shape of its activations, including input controls.
        steps: number of sampler steps.
        stored: numbers of samples and steps in the store.
        sums: bytes of one accumulator's sums; 0 if the study keeps no statistics.
    """

    study: Study
    source: ModelSource
    networks: tuple[Any, Any]
    shapes: dict[str, LayerShape]
    steps: int
    stored: StoredSamples
    sums: int

    def of_batch(self, batch: int) -> dict[str, int]:
        """Return the expected peak memory of one batch in bytes, by use, such as ``denoiser``.

        Intermediate values are those of the network that needs most, of denoiser, VAE and labelers,
        which run in turn.  On a CPU, the freed tensors of one of them that are smaller than 32 MiB
        stay in the process and are hardly used by the next (`keep_freed_memory`): they add up, and
        are counted as ``kept memory``.
        """
        study, (denoiser, vae) = self.study, self.networks
        size = 4 if study.model.dtype == "float32" else 2
        untrained = study.controls.untrained is not None
        captures_vae = any(name.startswith(VAE) for name in self.shapes)
        values = sum(shape.y * shape.x * shape.channels for shape in self.shapes.values())
        step = batch * values * study.capture.value_bytes * (1 + untrained)
        step_images = self.stored.steps if self.stored.step_images else 0
        height, width = self.source.architecture.size
        memory = {
            "libraries": LIBRARY_BYTES,
            "denoiser": _parameters(denoiser) * size * (1 + untrained),
            "vae": _parameters(vae) * 4 * (1 + (untrained and captures_vae)),
            "text encoders": _text_encoder_values(self.source) * size,
            "labelers": labeler_bytes(study),
            "activations": peak_activation_bytes(step, self.steps),
            "images": batch * (1 + 2 * step_images) * height * width * 3,
            "labels": batch * height * width * len(study.labels.maps) * (4 + 8 * step_images),
        }
        calls = self._of_calls(batch, size)
        memory["intermediate values"] = largest = max(peak for peak, _ in calls)
        kept = sum(small for _, small in calls) + max(peak - small for peak, small in calls)
        memory["kept memory"] = max(0, kept - largest)
        # If the study keeps statistics, the activations of all steps stay in memory until the batch
        # is labeled.  Stacking them makes one copy, hence the factor of 2.
        if self.sums:
            memory["activations"] = 2 * step * self.steps
            memory["statistics"] = self.sums
        return {use: bytes_ for use, bytes_ in memory.items() if bytes_}

    def _of_calls(self, batch: int, size: int) -> tuple[tuple[int, int], ...]:
        """Return the memory of the intermediate values of denoiser, VAE and labelers.

        Args:
            batch: number of samples in a batch.
            size: bytes of a value of the denoiser.

        Returns:
            for each of them its peak in bytes, and the bytes of its tensors below 32 MiB.
        """
        (denoising, decoding), study = self._of_one_sample, self.study
        # Source images are noised and denoised without guidance.
        scale = study.sampling.guidance if study.images is None else 1.0
        guidance = self.source.architecture.guidance(scale, study.prompts.negative)
        denoised = batch * guidance.batch_copies * size / 4
        decoded = min(images_per_decode(*self.source.architecture.size), batch)
        labeled = batch * max(1, self.stored.steps if self.stored.step_images else 0)
        return (
            (denoising.peak(denoised), denoising.kept(denoised)),
            (decoding.peak(decoded), decoding.kept(decoded)),
            labeling_bytes(study, labeled, self.source.architecture.size),
        )

    @cached_property
    def _of_one_sample(self) -> tuple[AllocationTrace, AllocationTrace]:
        """Traces of float32 tensors in a denoiser call and in a VAE decoder call on one sample.

        All sizes are proportional to the number of samples in a call.
        """
        architecture, (denoiser, vae) = self.source.architecture, self.networks
        latents = (1, architecture.vae["latent_channels"], *architecture.latent)
        return (
            trace_call(lambda: denoiser(**architecture.dummy_inputs()), denoiser),
            trace_call(lambda: architecture.decode(vae, torch.empty(latents)), vae),
        )


LIBRARY_BYTES = 1_080_000_000
"""Memory of a worker process that has imported all libraries, before it loads a model.

Resident memory on Linux with torch 2.14, diffusers 0.42 and Prefect 3.9, measured as 1.04 GB after
the imports and 1.09 GB after the creation of a run.
"""

CPU_USES = ("kept memory",)
"""Uses of memory that there are on a CPU alone."""

GPU_USES = ("denoiser", "vae", "text encoders", "labelers", "intermediate values")
"""Uses of memory that are on the GPU, if there is one."""


def planned_bytes(memory: dict[str, int], threads: int = 1, on_gpu: bool = False) -> dict[str, int]:
    """Add up the planned memory of one process; the result has the keys of `peak_memory`.

    Args:
        memory: bytes by use, from `WorkerMemory.of_batch`.
        threads: number of threads of the process that work at the same time.  They share the
            libraries and, on a GPU, the networks.
        on_gpu: whether the networks are on a GPU.
    """
    shared = memory.get("libraries", 0)
    each = sum(memory.values()) - shared
    if not on_gpu:
        return {"memory": shared + threads * each}
    gpu = sum(memory.get(use, 0) for use in GPU_USES)
    each -= sum(memory.get(use, 0) for use in CPU_USES)
    return {"memory": shared + threads * (each - gpu), "GPU memory": gpu}


def _text_encoder_values(source: ModelSource) -> int:
    """Count the values in the weights of a model's text encoders; 0 if the weights are missing."""
    if isinstance(source, PipelineSource):
        parts = source.pipeline.components
        return sum(_parameters(parts[n]) for n in parts if "text_encoder" in n and parts[n])
    total = 0
    for encoder in source.folder.glob("text_encoder*") if source.folder else ():
        with suppress(UserError):
            total += sum(prod(tensor.shape) for tensor in read_component(encoder).values())
    return total


def _parameters(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
