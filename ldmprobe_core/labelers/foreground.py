"""Labelers of the foreground: the saliency networks TRACER and InSPyReNet.

The classes of the networks come from the packages carvekit and transparent-background.  Their own
loaders are not used, because they download files and unpickle them; instead, weights are read from
a safetensors file.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ldmprobe_core.labelers.base import CallMemory
from ldmprobe_core.labelers.image_batches import IMAGENET, in_batches, normalise, resized, to_tensor
from ldmprobe_core.labelers.weights import find_file, load_state, published_file, require_package
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import PublishedSource

_TRACER_SIDE = 640
_INSPYRENET_SIDE = 384


class SaliencyLabeler:
    """Foreground labeler that uses a saliency network.

    Args:
        network: network from images (n, rgb, y, x) to probabilities of foreground (n, 1, y, x).
        side: height and width of the network's input in pixels.
        device: device of the network.
    """

    units = "probability of foreground"
    classes: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, side: int, device: torch.device) -> None:
        self.network, self.side, self.device = network, side, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute foreground probabilities (n, y, x) float32 in 0..1 from images."""
        return in_batches(images, 1, self._label)

    @torch.no_grad()
    def _label(self, images: np.ndarray) -> np.ndarray:
        from torchvision.transforms.functional import InterpolationMode, resize

        data = to_tensor(images, self.device)
        square = [self.side, self.side]
        data = resize(data, square, InterpolationMode.BILINEAR, antialias=True)
        predicted: Tensor = self.network(normalise(data, **IMAGENET))
        size = (images.shape[1], images.shape[2])
        predicted = predicted.reshape(len(images), *predicted.shape[-2:])
        return np.clip(resized(predicted, size), 0, 1)


def locate_tracer(spec: LabelerSpec) -> list[Path]:
    """Check that carvekit is installed, and find the weights file of TRACER.

    Raises:
        UserError: the package or the file is missing.
    """
    require_package(
        "carvekit",
        "pip install --no-deps carvekit (its dependencies include a package named typing, which "
        "breaks current Python)",
    )
    return [find_file(spec, "TRACER-B7's weights (tracer_b7.pth of Carve/tracer_b7)")]


def tracer_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of TRACER-B7 on one image, which it resizes to 640 x 640."""
    return CallMemory(1, 300_800_000, 129_400_000)


def published_tracer(spec: LabelerSpec) -> list[PublishedSource]:
    """List the file of TRACER's weights that carvekit publishes on the hub."""
    return published_file(spec, "tracer_b7.pth", "Carve/tracer_b7")


def load_tracer(spec: LabelerSpec, device: torch.device) -> SaliencyLabeler:
    """Load TRACER with EfficientNet-B7 (Lee, Shin & Han 2022), with carvekit's weights."""
    (path,) = locate_tracer(spec)
    # Importing carvekit seeds PyTorch's global random generators.  `fork_rng` restores their state,
    # so that random numbers elsewhere in the process do not depend on the labeler.
    with torch.random.fork_rng():
        from carvekit.ml.arch.tracerb7.efficientnet import EfficientEncoderB7
        from carvekit.ml.arch.tracerb7.tracer import TracerDecoder

        network = TracerDecoder(
            encoder=EfficientEncoderB7(),
            rfb_channel=[32, 64, 128],
            features_channels=[48, 80, 224, 640],
        )
    return SaliencyLabeler(load_state(network, path, device), _TRACER_SIDE, device)


def locate_inspyrenet(spec: LabelerSpec) -> list[Path]:
    """Check that transparent-background is installed, and find the weights file of InSPyReNet.

    Raises:
        UserError: the package or the file is missing.
    """
    require_package("transparent_background", "pip install 'ldmprobe[inspyrenet]'")
    return [find_file(spec, "InSPyReNet's weights (ckpt_fast.pth of transparent-background)")]


def inspyrenet_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of InSPyReNet on one image, which it resizes to 384 x 384."""
    return CallMemory(1, 377_500_000, 132_800_000)


def published_inspyrenet(spec: LabelerSpec) -> list[PublishedSource]:
    """List the file of InSPyReNet's weights, at the URL that its package names.

    The list is empty without the package, since `locate_inspyrenet` reports that it is missing.
    """
    package = importlib.util.find_spec("transparent_background")
    if package is None:
        return []
    config = Path(str(package.origin)).with_name("config.yaml")
    record = yaml.safe_load(config.read_text("utf-8"))["fast"]
    url = str(record["url"])
    return published_file(spec, url.rpartition("/")[2], url, checksum=("md5", str(record["md5"])))


def load_inspyrenet(spec: LabelerSpec, device: torch.device) -> SaliencyLabeler:
    """Load InSPyReNet with Swin-B (Kim et al. 2022) in its fast mode, for inputs of 384 pixels."""
    (path,) = locate_inspyrenet(spec)
    from transparent_background.InSPyReNet import InSPyReNet_SwinB

    side = [_INSPYRENET_SIDE, _INSPYRENET_SIDE]
    network = InSPyReNet_SwinB(depth=64, pretrained=False, base_size=side, threshold=None)
    return SaliencyLabeler(load_state(network, path, device), _INSPYRENET_SIDE, device)
