"""Labelers for the tabletop model: small networks that are part of this package.

They were trained on exact maps from the renderer of tabletop scenes.  One network computes the maps
of foreground, depth, shading and surface normals, and another computes class probabilities.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import CallMemory
from ldmprobe_core.labelers.tabletop_networks import MAP_CHANNELS, ClassNetwork, MapNetwork
from ldmprobe_core.labelers.weights import Network, load_state, refuse_revision
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.study.readers.image_folder import file_digest
from ldmprobe_core.study.readers.value_types import user_path

_BATCH = 64
_MAP_FACTOR = 16
"""Factor by which the map network reduces the sides of its input, which must divide them."""

JUDGE_WIDTHS = (24, 48, 96, 160)
"""Layer widths of the judge, a second classifier that evaluates the tabletop model."""


class _MapNetworkCache:
    """Map network that caches its last output, separately for each thread.

    A study calls the labelers of several properties with the same array of images, and the cache
    lets them share one forward pass.
    """

    def __init__(self, network: MapNetwork, device: torch.device) -> None:
        self.network, self.device = network, device
        self.cache = threading.local()

    def __call__(self, images: np.ndarray) -> Tensor:
        last: tuple[np.ndarray, Tensor] | None = getattr(self.cache, "last", None)
        if last is None or last[0] is not images:
            y, x = images.shape[1:3]
            maps = _apply(self.network, _extended(images), self.device)[..., :y, :x]
            last = self.cache.last = images, maps
        return last[1]


def _extended(images: np.ndarray) -> np.ndarray:
    """Repeat the last rows and columns of images, so that the map network can halve them."""
    bottom, right = (-side % _MAP_FACTOR for side in images.shape[1:3])
    if not bottom and not right:
        return images
    return np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")


def _less_mean(maps: Tensor) -> Tensor:
    """Subtract the mean of each log depth map, because an image does not show absolute scale."""
    return maps - maps.mean((1, 2), keepdim=True)


_OUTPUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "foreground": ("probability of foreground", torch.sigmoid),
    "depth": ("log of depth, relative to the image's mean", _less_mean),
    "shading": ("light at the surface, 1 = fully lit", torch.Tensor.clone),
}
"""Units of each property's maps, and the function that computes them from a network output."""


class MapLabeler:
    """Labeler of foreground, log depth or shading: one output of the tabletop map network."""

    classes: tuple[str, ...] = ()

    def __init__(self, prop: str, maps: _MapNetworkCache) -> None:
        self.channel = MAP_CHANNELS.index(prop)
        self.maps = maps
        self.units, self.convert = _OUTPUTS[prop]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute maps (n, y, x) float32 of the property from images (n, y, x, rgb) uint8."""
        return self.convert(self.maps(images)[:, self.channel]).numpy()


class NormalLabeler:
    """Labeler of surface normals, as unit vectors in the camera's axes."""

    units = "unit vector in the camera's axes: right, up, towards the camera"
    classes: tuple[str, ...] = ()

    def __init__(self, maps: _MapNetworkCache) -> None:
        self.maps = maps

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute unit normals (n, y, x, axis) float32 from images (n, y, x, rgb) uint8."""
        vectors = self.maps(images)[:, MAP_CHANNELS.index("normal x") :].permute(0, 2, 3, 1)
        return normalize(vectors, dim=-1).contiguous().numpy()


class ClassLabeler:
    """Labeler of class probabilities over the categories of the tabletop scenes."""

    units = "probability"
    classes = CATEGORIES

    def __init__(self, network: ClassNetwork, device: torch.device) -> None:
        self.network, self.device = network, device

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute class probabilities (n, class) float32 from images (n, y, x, rgb) uint8."""
        return _apply(self.network, images, self.device).softmax(1).numpy()

    def features(self, images: np.ndarray) -> np.ndarray:
        """Compute penultimate-layer features (n, d) float32 of images (n, y, x, rgb) uint8."""
        return _apply(self.network.features, images, self.device).numpy()


def maps_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of the map network, which grows with the pixels of an image."""
    y, x = (side + -side % _MAP_FACTOR for side in size)
    return CallMemory(_BATCH, *(404 * y * x,) * 2)


def classes_memory(size: tuple[int, int]) -> CallMemory:
    """Return the memory of a call of the class network, which grows with the pixels of an image."""
    return CallMemory(_BATCH, *(172 * size[0] * size[1],) * 2)


@torch.no_grad()
def _apply(network: Callable[[Tensor], Tensor], images: np.ndarray, device: torch.device) -> Tensor:
    """Apply a network to images (n, y, x, rgb) uint8 in batches; return float32 on the CPU."""
    parts = []
    for start in range(0, len(images), _BATCH):
        part = np.ascontiguousarray(images[start : start + _BATCH])
        batch = torch.from_numpy(part).to(device)
        parts.append(network(batch.permute(0, 3, 1, 2).float() / 127.5 - 1).float().cpu())
    return torch.cat(parts)


def _folder(spec: LabelerSpec) -> Path:
    """Return the folder with the labelers' weights that the study names, or else the package's."""
    return user_path(spec.weights) if spec.weights else MODEL_FOLDER


def _path(name: str, folder: Path) -> Path:
    """Return the path of a network's weights in a model folder."""
    path = folder / "labelers" / f"{name}.safetensors"
    if folder.is_file():
        raise UserError(
            f"the tabletop labeler's weights {str(folder)!r} are a file. Fix: give the model "
            "folder that has labelers/maps.safetensors"
        )
    if path.is_file():
        return path
    if folder == MODEL_FOLDER:
        raise UserError(
            f"the tabletop labeler's weights {path.name} are missing from {path.parent}. Fix: "
            "reinstall ldmprobe, or train them with python -m ldmprobe_core.tabletop.train"
        )
    problem = f"lack labelers/{path.name}" if folder.is_dir() else "are not a folder that exists"
    raise UserError(
        f"the tabletop labeler's weights {str(folder)!r} {problem}. Fix: give a model folder "
        "written by python -m ldmprobe_core.tabletop.train, or leave weights out for those that "
        "ship with ldmprobe"
    )


def _map_network(device: torch.device, folder: Path) -> MapNetwork:
    """Load the map network, whose number of outputs is read from its weights."""
    path = _path("maps", folder)
    try:
        with safe_open(path, framework="pt") as file:
            (outputs,) = file.get_slice("head.2.bias").get_shape()
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the tabletop labeler's weights {str(path)!r} are not those of a map network "
            f"({error!s:.120}). Fix: give a model folder written by "
            "python -m ldmprobe_core.tabletop.train"
        ) from error
    return _weights(MapNetwork(outputs=outputs), "maps", device, folder)


def _weights(network: Network, name: str, device: torch.device, folder: Path) -> Network:
    """Load the weights of a network in float32, and freeze them."""
    return load_state(network, _path(name, folder), device)


def _maps(device: torch.device, folder: Path) -> _MapNetworkCache:
    """Load the map network once for all map labelers with the same device and weights."""
    return _shared_maps(device, folder, file_digest(_path("maps", folder)))


@lru_cache(maxsize=1)
def _shared_maps(device: torch.device, folder: Path, digest: bytes) -> _MapNetworkCache:
    """Load the map network, again if the digest of its file has changed."""
    return _MapNetworkCache(_map_network(device, folder), device)


def map_labeler(prop: str, network: MapNetwork, device: torch.device) -> MapLabeler:
    """Build the labeler of one property (foreground, depth or shading) from a map network."""
    return MapLabeler(prop, _MapNetworkCache(network, device))


def load_networks(folder: Path, device: torch.device) -> dict[str, Any]:
    """Load the labelers' networks from a model folder: ``maps``, ``class`` and ``judge``."""
    classes = len(CATEGORIES)
    return {
        "maps": _map_network(device, folder),
        "class": _weights(ClassNetwork(classes), "class", device, folder),
        "judge": _weights(ClassNetwork(classes, JUDGE_WIDTHS), "judge", device, folder),
    }


def locate_weights(spec: LabelerSpec) -> list[Path]:
    """List the weight files of the tabletop labelers: of the map network and the classifier.

    Raises:
        UserError: a file is missing, or the study gives a revision, which these labelers lack.
    """
    refuse_revision(spec)
    return [_path(name, _folder(spec)) for name in ("maps", "class")]


def load_foreground(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the labeler of foreground: the share of each pixel that an object covers, 0..1."""
    return MapLabeler("foreground", _maps(device, _folder(spec)))


def load_depth(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the labeler of depth: log depth along the camera's axis, minus the image's mean."""
    return MapLabeler("depth", _maps(device, _folder(spec)))


def load_shading(spec: LabelerSpec, device: torch.device) -> MapLabeler:
    """Load the labeler of shading: the light that arrives at each surface, 0..1."""
    return MapLabeler("shading", _maps(device, _folder(spec)))


def load_normals(spec: LabelerSpec, device: torch.device) -> NormalLabeler:
    """Load the labeler of normals: unit vectors perpendicular to surfaces, in the camera's axes.

    Raises:
        UserError: the weights are missing, or are of a network without outputs for normals.
    """
    folder = _folder(spec)
    maps = _maps(device, folder)
    if maps.network.outputs < len(MAP_CHANNELS):
        raise UserError(
            f"the tabletop labeler's weights {_path('maps', folder)} have no outputs for normals. "
            f"Fix: train them further with python -m ldmprobe_core.tabletop.train --from {folder}"
        )
    return NormalLabeler(maps)


def load_classes(spec: LabelerSpec, device: torch.device) -> ClassLabeler:
    """Load the labeler of the class: probabilities of the twelve tabletop categories."""
    network = ClassNetwork(len(CATEGORIES))
    return ClassLabeler(_weights(network, "class", device, _folder(spec)), device)


def load_judge(spec: LabelerSpec, device: torch.device) -> ClassLabeler:
    """Load the judge, a second classifier that was trained separately from the class labeler."""
    network = ClassNetwork(len(CATEGORIES), JUDGE_WIDTHS)
    return ClassLabeler(_weights(network, "judge", device, _folder(spec)), device)
