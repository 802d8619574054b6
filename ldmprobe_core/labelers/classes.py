"""Class: what an image classifier names the object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import VGG16_Weights, vgg16
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.image_batches import in_batches, to_tensor
from ldmprobe_core.labelers.weights import files_of, find_file, find_folder, load_state
from ldmprobe_core.study.sections import LabelerSpec

_AT_ONCE = 16


class VggLabeler:
    """torchvision's VGG-16 with its own transforms: resize to 256, centre crop of 224."""

    units = "probability"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self.classes = _unique(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
        self.transform = VGG16_Weights.IMAGENET1K_V1.transforms()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return in_batches(images, _AT_ONCE, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        data = self.transform(to_tensor(images, self.device))
        return self.network(data).softmax(1).cpu().numpy()


class TransformersClassLabeler:
    """Any image classifier that transformers can load."""

    units = "probability"

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        names = model.config.id2label
        self.classes = _unique([str(names[i]) for i in range(len(names))])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return in_batches(images, _AT_ONCE, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs).logits.softmax(1).cpu().numpy()


def _unique(names: list[str]) -> tuple[str, ...]:
    """Names of classes, a repeated one numbered: ImageNet has two cranes and two maillots."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def locate_vgg16(spec: LabelerSpec) -> list[Path]:
    """A file, or torchvision's cache."""
    published = Path(VGG16_Weights.IMAGENET1K_V1.url).name
    cache = Path(torch.hub.get_dir()) / "checkpoints" / published
    return [find_file(spec, f"torchvision's {published}", cache.with_suffix(".safetensors"))]


def load_vgg16(spec: LabelerSpec, device: torch.device) -> VggLabeler:
    """VGG-16 (Simonyan & Zisserman 2015), ImageNet-1k."""
    (path,) = locate_vgg16(spec)
    with torch.device("meta"):  # 138 million weights that need not be drawn first
        network = vgg16()
    return VggLabeler(load_state(network.to_empty(device="cpu"), path, device), device)


def locate_transformers_classes(spec: LabelerSpec) -> list[Path]:
    """Files of a folder or hub id."""
    return files_of(find_folder(spec))


def load_transformers_classes(spec: LabelerSpec, device: torch.device) -> TransformersClassLabeler:
    """An image classifier from a folder or hub id."""
    folder = find_folder(spec)
    try:
        model = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"weights {str(folder)!r} do not load: {reason}") from error
    return TransformersClassLabeler(model.to(device).eval().requires_grad_(False), processor)
