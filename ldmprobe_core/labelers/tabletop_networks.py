"""Networks of the tabletop labelers: a small U-Net for maps, and a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAP_CHANNELS = ("foreground", "depth", "shading", "normal x", "normal y", "normal z")
"""Names of the output channels of `MapNetwork`; without normals it has the first three."""


class _Block(nn.Module):
    """Residual block: group normalisation, SiLU and 3 x 3 convolution, twice, plus a shortcut."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_in, self.norm = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        same = channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(F.silu(self.norm_in(x)))
        return self.shortcut(x) + self.second(F.silu(self.norm(inner)))


class _Encoder(nn.Module):
    """Encoder with features at 1/2, 1/4, 1/8 and 1/16 of the image's size."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Conv2d(3, a, 4, stride=2, padding=1)
        self.stages = nn.ModuleList(
            [
                _Block(a, a),
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), _Block(b, b), _Block(b, b)),
                nn.Sequential(nn.Conv2d(b, c, 3, stride=2, padding=1), _Block(c, c), _Block(c, c)),
                nn.Sequential(nn.Conv2d(c, d, 3, stride=2, padding=1), _Block(d, d)),
            ]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MapNetwork(nn.Module):
    """U-Net from images (n, rgb, y, x) in -1..1 to the maps of `MAP_CHANNELS`, (n, map, y, x).

    The foreground is a logit, depth is the logarithm of a distance, and shading is linear.  The
    normal is a vector of any length in the camera's axes: right, up, towards the camera.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (32, 64, 128, 128),
        outputs: int = len(MAP_CHANNELS),
    ) -> None:
        super().__init__()
        self.outputs = outputs
        a, b, c, d = widths
        self.encoder = _Encoder(widths)
        self.decoders = nn.ModuleList([_Block(d + c, c), _Block(c + b, b), _Block(b + a, a)])
        self.expand = nn.Conv2d(a, 4 * 16, 3, padding=1)
        self.head = nn.Sequential(
            nn.Conv2d(16 + 3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, outputs, 3, padding=1)
        )

    def load_fewer(self, state: dict[str, Tensor]) -> None:
        """Load the weights of another `MapNetwork`, which has fewer outputs, into this network.

        The weights of the outputs that the other network lacks are not changed.
        """
        current = self.state_dict()
        for key in ("head.2.weight", "head.2.bias"):
            fewer = state[key]
            state = state | {key: torch.cat([fewer, current[key][len(fewer) :].to(fewer)])}
        self.load_state_dict(state)

    def forward(self, image: Tensor) -> Tensor:
        """Compute maps (n, map, y, x) from images (n, rgb, y, x) in -1..1."""
        *skips, x = self.encoder(image)
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            x = decoder(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        fine = F.pixel_shuffle(self.expand(F.silu(x)), 2)
        return self.head(torch.cat([fine, image], 1))


class ClassNetwork(nn.Module):
    """Classifier from images (n, rgb, y, x) in -1..1 to class logits (n, class)."""

    def __init__(self, classes: int, widths: tuple[int, int, int, int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.encoder = _Encoder(widths)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def features(self, image: Tensor) -> Tensor:
        """Compute spatially averaged features (n, d), from which the class logits are computed."""
        last = self.encoder(image)[-1]
        return F.silu(self.norm(last)).mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Compute class logits (n, class) from images (n, rgb, y, x) in -1..1."""
        return self.head(self.features(image))
