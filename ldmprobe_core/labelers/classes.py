"""Labelers of the object class: image classifiers from torchvision and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ldmprobe_core.labelers.base import CallMemory
from ldmprobe_core.labelers.image_batches import in_batches, to_tensor
from ldmprobe_core.labelers.weights import (
    files_of,
    find_file,
    find_folder,
    load_network,
    load_state,
    published_file,
    read_pretrained,
    require_tensors,
)
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import PublishedSource

_BATCH = 16


class VggLabeler:
    """Class labeler that uses torchvision's VGG-16.

    Images are resized to 256 pixels and cropped to 224, as in the network's training.
    """

    units = "probability"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        from torchvision.models import VGG16_Weights

        self.network, self.device = network, device
        self.classes = tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
        self.transform = VGG16_Weights.IMAGENET1K_V1.transforms()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute class probabilities (n, class) float32 from images (n, y, x, rgb) uint8."""
        return in_batches(images, _BATCH, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        data = self.transform(to_tensor(images, self.device))
        return self.network(data).softmax(1).cpu().numpy()


class TransformersClassLabeler:
    """Class labeler that uses an image classifier of transformers."""

    units = "probability"

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        names = model.config.id2label
        self.classes = tuple(str(names[i]) for i in range(len(names)))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute class probabilities (n, class) float32 from images (n, y, x, rgb) uint8."""
        return in_batches(images, _BATCH, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs).logits.softmax(1).cpu().numpy()


def locate_vgg16(spec: LabelerSpec) -> list[Path]:
    """Find the weights file of VGG-16: the one that the study names, or torchvision's copy."""
    from torchvision.models import VGG16_Weights

    published = Path(VGG16_Weights.IMAGENET1K_V1.url).name
    cache = Path(torch.hub.get_dir()) / "checkpoints" / published
    return [find_file(spec, f"torchvision's {published}", cache.with_suffix(".safetensors"))]


def vgg16_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of VGG-16, whose input has 224 x 224 pixels for any image."""
    return CallMemory(_BATCH, 39_140_000, 5_420_000)


def published_vgg16(spec: LabelerSpec) -> list[PublishedSource]:
    """List the file of VGG-16's weights that torchvision publishes."""
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    name = Path(url).name
    cache = Path(torch.hub.get_dir()) / "checkpoints" / name
    # The file's name ends with the first digits of its SHA-256.
    digits = name.rpartition("-")[2].partition(".")[0]
    return published_file(spec, name, url, cache.with_suffix(".safetensors"), ("sha256", digits))


def load_vgg16(spec: LabelerSpec, device: torch.device) -> VggLabeler:
    """Load the class labeler with VGG-16 (Simonyan & Zisserman 2015), trained on ImageNet-1k."""
    from torchvision.models import vgg16

    (path,) = locate_vgg16(spec)
    # The weights are loaded below.  Building the network on the meta device saves the time of the
    # random initialisation of its 138 million weights.
    with torch.device("meta"):
        network = vgg16()
    return VggLabeler(load_state(network.to_empty(device="cpu"), path, device), device)


def locate_transformers_classes(spec: LabelerSpec) -> list[Path]:
    """List the weight and config files of the image classifier that the study names.

    Raises:
        UserError: the weights are missing or incomplete.
    """
    from transformers import AutoModelForImageClassification

    folder = find_folder(spec)
    require_tensors(AutoModelForImageClassification, folder)
    return files_of(folder)


def load_transformers_classes(spec: LabelerSpec, device: torch.device) -> TransformersClassLabeler:
    """Load an image classifier of transformers from a folder or the Hugging Face cache.

    Raises:
        UserError: the weights are missing or incomplete, or do not load.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = find_folder(spec)
    model = load_network(AutoModelForImageClassification, folder, device)
    return TransformersClassLabeler(model, read_pretrained(AutoImageProcessor, folder))
