"""Estimate of the memory that a worker needs, from configs alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import labeler_bytes
from ldmprobe_core.models.files.checkpoint import read_component
from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.models.token_grid import images_per_decode
from ldmprobe_core.pipeline.activation_sinks import peak_activation_bytes
from ldmprobe_core.pipeline.planning.sizes import StoredSamples
from ldmprobe_core.study.layers import VAE, LayerShape
from ldmprobe_core.study.schema import Study


def peak_bytes(call: Callable[[], Any], *networks: nn.Module) -> int:
    """Compute the peak memory in bytes of the tensors that a call on the meta device holds.

    PyTorch's attention function is counted without its matrix of attention scores, which its fast
    implementations never hold as a whole.  A convolution is counted with a second copy of its
    input, since oneDNN on CPUs works on a copy in another order of memory.

    Args:
        call: function that calls networks without gradients, with tensors on the meta device.
        networks: networks on the meta device, whose weights are not counted.
    """
    live = _LiveTensors(tensor for n in networks for tensor in (*n.parameters(), *n.buffers()))
    with torch.device("meta"), torch.no_grad(), live, _FusedAttention():
        call()
    return live.peak


@dataclass(frozen=True)
class WorkerMemory:
    """Estimate of the memory that a worker needs to generate and label images.

    Attributes:
        study: the study.
        source: source of the model; the text encoders of a pipeline object are left out.
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

        The labelers' intermediate values are left out: they are assumed to be no larger than those
        of the denoiser and the VAE, whose memory the labelers reuse.
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
            "text encoders": _text_encoder_values(self.source.folder) * size,
            "labelers": labeler_bytes(study),
            "activations": peak_activation_bytes(step, self.steps),
            "images": batch * (1 + 2 * step_images) * height * width * 3,
            "intermediate values": self._intermediate_bytes(batch, size),
        }
        # If the study keeps statistics, the activations of all steps stay in memory until the batch
        # is labeled.  Stacking them makes one copy, hence the factor of 2.
        if self.sums:
            memory["activations"] = 2 * step * self.steps
            memory["statistics"] = self.sums
        return {use: bytes_ for use, bytes_ in memory.items() if bytes_}

    def _intermediate_bytes(self, batch: int, size: int) -> int:
        """Return the peak bytes of intermediate values of denoiser or VAE, which run in turn.

        Args:
            batch: number of samples in a batch.
            size: bytes of a value of the denoiser.
        """
        denoising, decoding = self._of_one_sample
        study = self.study
        # Source images are noised and denoised without guidance.
        scale = study.sampling.guidance if study.images is None else 1.0
        guidance = self.source.architecture.guidance(scale, study.prompts.negative)
        decoded = min(images_per_decode(*self.source.architecture.size), batch)
        return max(denoising * batch * guidance.batch_copies * size // 4, decoding * decoded)

    @cached_property
    def _of_one_sample(self) -> tuple[int, int]:
        """Peak bytes of float32 tensors in a denoiser call and in a VAE decoder call on one sample.

        Both are proportional to the number of samples in a call.
        """
        architecture, (denoiser, vae) = self.source.architecture, self.networks
        latents = (1, architecture.vae["latent_channels"], *architecture.latent)
        return (
            peak_bytes(lambda: denoiser(**architecture.dummy_inputs()), denoiser),
            peak_bytes(lambda: architecture.decode(vae, torch.empty(latents)), vae),
        )


LIBRARY_BYTES = 1_000_000_000
"""Memory of a worker process that has imported all libraries, before it loads a model.

Resident memory on Linux with torch 2.14, diffusers 0.42 and Prefect 3.9, measured as 1.04 GB.
"""

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
    return {"memory": shared + threads * (each - gpu), "GPU memory": gpu}


def _text_encoder_values(folder: Path | None) -> int:
    """Count the values in the weights of a model's text encoders; 0 if the weights are missing."""
    total = 0
    for encoder in folder.glob("text_encoder*") if folder else ():
        with suppress(UserError):
            total += sum(prod(tensor.shape) for tensor in read_component(encoder).values())
    return total


def _parameters(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


class _LiveTensors(TorchDispatchMode):
    """PyTorch dispatch mode that tracks the total bytes of live tensors and their peak.

    Args:
        known: tensors that are not counted, such as weights.

    Attributes:
        peak: largest number of bytes so far.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.peak, self._live = 0, 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        copied = 0
        if func is torch.ops.aten.convolution.default:
            copied = args[0].numel() * args[0].element_size()
        self.peak = max(self.peak, self._live + copied)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor's storage once, until it is freed; a view shares its base's storage."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self._live += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._live -= size


class _FusedAttention(TorchFunctionMode):
    """PyTorch function mode in which the attention function allocates only its output."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *(kwargs or {}).values())[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])
