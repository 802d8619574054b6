"""Embedded labelers: small networks trained on the renderer's exact maps.

For the tabletop model they take the place of TRACER (foreground), MiDaS (depth), Intrinsic
(shading) and VGG-16 (class).  One network computes all maps, surface normals included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.tabletop_networks import MAP_CHANNELS, ClassNetwork, MapNetwork
from ldmprobe_core.labelers.weights import refuse_revision
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.study.sections import LabelerSpec

Network = TypeVar("Network", bound=nn.Module)

_BATCH = 64
JUDGE_WIDTHS = (24, 48, 96, 160)
"""Layer widths of the judge, a second classifier that scores generated images outside studies."""


class _MapNetworkCache:
    """Map network with a cache of the last images' maps, one for each thread.

    The labelers of a study are called with the same array one after the other, so that they share
    one forward pass.
    """

    def __init__(self, network: MapNetwork, device: torch.device) -> None:
        self.network, self.device = network, device
        self.cache = threading.local()

    def __call__(self, images: np.ndarray) -> Tensor:
        last: tuple[np.ndarray, Tensor] | None = getattr(self.cache, "last", None)
        if last is None or last[0] is not images:
            last = self.cache.last = images, _apply(self.network, images, self.device)
        return last[1]


class MapLabeler:
    """Labeler of one output of the map network: foreground, log depth or shading."""

    classes: tuple[str, ...] = ()

    def __init__(self, prop: str, maps: _MapNetworkCache) -> None:
        self.prop, self.channel = prop, MAP_CHANNELS.index(prop)
        self.maps = maps
        self.units = {
            "foreground": "probability of foreground",
            "depth": "log of depth, relative to the image's mean",
            "shading": "light at the surface, 1 = fully lit",
        }[prop]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        output = self.maps(images)[:, self.channel]
        if self.prop == "foreground":
            output = torch.sigmoid(output)
        if self.prop == "depth":
            # The scale of a scene is not visible in an image: depth is relative, as with MiDaS.
            output = output - output.mean((1, 2), keepdim=True)
        return output.numpy()


class NormalLabeler:
    """Labeler of surface normals, in the axes of `tabletop.render.Rendering.normal`."""

    units = "unit vector in the camera's axes: right, up, towards the camera"
    classes: tuple[str, ...] = ()

    def __init__(self, maps: _MapNetworkCache) -> None:
        self.maps = maps

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Unit vectors (n, y, x, axis) float32 of uint8 images (n, y, x, rgb)."""
        vectors = self.maps(images)[:, MAP_CHANNELS.index("normal x") :].permute(0, 2, 3, 1)
        return normalize(vectors, dim=-1).contiguous().numpy()


class ClassLabeler:
    """Labeler of the tabletop categories."""

    units = "probability"
    classes = CATEGORIES

    def __init__(self, network: ClassNetwork, device: torch.device) -> None:
        self.network, self.device = network, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `ldmprobe_core.labelers.base.Labeler`."""
        return _apply(self.network, images, self.device).softmax(1).numpy()

    def features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate layer, (n, d) float32, of uint8 images (n, y, x, rgb)."""
        return _apply(self.network.features, images, self.device).numpy()


@torch.no_grad()
def _apply(network: Callable[[Tensor], Tensor], images: np.ndarray, device: torch.device) -> Tensor:
    parts = []
    for start in range(0, len(images), _BATCH):
        part = np.ascontiguousarray(images[start : start + _BATCH])
        batch = torch.from_numpy(part).to(device)
        parts.append(network(batch.permute(0, 3, 1, 2).float() / 127.5 - 1).float().cpu())
    return torch.cat(parts)


def _folder(spec: LabelerSpec) -> Path:
    """Folder of the labelers' weights: the embedded ones, or others from the same training."""
    return Path(spec.weights).expanduser() if spec.weights else MODEL_FOLDER


def _path(name: str, folder: Path) -> Path:
    path = folder / "labelers" / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"the tabletop labeler's weights {path.name} are missing from {path.parent}. Fix: "
            "reinstall ldmprobe, or train them with python -m ldmprobe_core.tabletop.train"
        )
    return path


def _map_network(device: torch.device, folder: Path) -> MapNetwork:
    """The map network, with as many outputs as its weights have."""
    outputs = len(load_file(_path("maps", folder))["head.2.bias"])
    return _weights(MapNetwork(outputs=outputs), "maps", device, folder)


def _weights(network: Network, name: str, device: torch.device, folder: Path) -> Network:
    state = load_file(_path(name, folder))
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network.to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _maps(device: torch.device, folder: Path) -> _MapNetworkCache:
    return _MapNetworkCache(_map_network(device, folder), device)


def map_labeler(prop: str, network: MapNetwork, device: torch.device) -> MapLabeler:
    """Labeler of one property from a loaded map network."""
    return MapLabeler(prop, _MapNetworkCache(network, device))


def load_networks(folder: Path, device: torch.device) -> dict[str, Any]:
    """Load the networks of a model folder's labelers by file name: maps, class, judge."""
    classes = len(CATEGORIES)
    return {
        "maps": _map_network(device, folder),
        "class": _weights(ClassNetwork(classes), "class", device, folder),
        "judge": _weights(ClassNetwork(classes, JUDGE_WIDTHS), "judge", device, folder),
    }


def locate_weights(spec: LabelerSpec) -> list[Path]:
    """Find the weight files.

    Raises:
        UserError: they are missing.
    """
    refuse_revision(spec)
    return [_path(name, _folder(spec)) for name in ("maps", "class")]


def load_foreground(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the foreground labeler: share of each pixel that the object covers, 0..1."""
    return MapLabeler("foreground", _maps(device, _folder(spec)))


def load_depth(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the depth labeler: log of depth along the camera's axis, less the image's mean."""
    return MapLabeler("depth", _maps(device, _folder(spec)))


def load_shading(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the shading labeler: light that arrives at each surface, 0..1."""
    return MapLabeler("shading", _maps(device, _folder(spec)))


def load_normals(spec: LabelerSpec, device: torch.device) -> NormalLabeler:
    """Load the labeler of normals: unit vectors perpendicular to surfaces, in the camera's axes.

    Raises:
        UserError: the weights are of a network that was trained without normals.
    """
    folder = _folder(spec)
    maps = _maps(device, folder)
    if maps.network.outputs < len(MAP_CHANNELS):
        raise UserError(
            f"the tabletop labeler's weights {_path('maps', folder)} give no normals. Fix: train "
            f"them further with python -m ldmprobe_core.tabletop.train --from {folder}"
        )
    return NormalLabeler(maps)


def load_classes(spec: LabelerSpec, device: torch.device) -> ClassLabeler:
    """Load the class labeler: probabilities of the twelve categories."""
    network = ClassNetwork(len(CATEGORIES))
    return ClassLabeler(_weights(network, "class", device, _folder(spec)), device)


def load_judge(spec: LabelerSpec, device: torch.device) -> ClassLabeler:
    """Load the judge: a second, separately trained classifier for scores outside studies."""
    network = ClassNetwork(len(CATEGORIES), JUDGE_WIDTHS)
    return ClassLabeler(_weights(network, "judge", device, _folder(spec)), device)
