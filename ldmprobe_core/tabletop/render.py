"""Ray casting a scene: the picture and its exact maps.

Light is one directional lamp with hard shadows plus an ambient sky sampled in fixed directions, so
a picture is free of noise and, sample by sample, ``rgb = albedo * shading`` holds exactly.  Rays
are cast by Intel Embree through ``embreex``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from ldmprobe_core.study.prompt_sets import FLOOR_COLORS, OBJECT_COLORS, RGB, WALL_COLORS
from ldmprobe_core.tabletop import IMAGE_SIZE
from ldmprobe_core.tabletop.meshes import object_parts
from ldmprobe_core.tabletop.scenes import LOOK_AT, Arrangement, Item, Scene, camera_axes

SAMPLES = 2
"""Rays a pixel, along each axis."""
NEAR, FAR = 1.0, 12.0
"""Depth is clipped to this range, in scene units, before the logarithm."""
SKY: RGB = (0.80, 0.86, 0.92)

_AMBIENT_FLOOR, _AMBIENT_SKY, _LAMP = 0.12, 0.33, 0.55  # add up to 1: nothing overexposes
_WALL_HEIGHT, _FLOOR_REACH = 6.0, 40.0
_LIFT = 2e-3  # secondary rays start this far off the surface, against self-intersection


@dataclass(frozen=True)
class Rendering:
    """A picture and its maps, every one (y, x), (y, x, rgb) or (y, x, axis), float32.

    Attributes:
        rgb: 0..1, display values (no gamma).
        foreground: share of the pixel that objects cover, 0..1.
        objects: (object, y, x), share of the pixel that each object covers, 0..1.
        depth: mean of log z over the pixel, z along the camera's axis, clipped to `NEAR`..`FAR`;
            larger is farther.
        shading: light arriving at the surface, 0..1; 1 in the sky.
        albedo: colour of the surface, 0..1.
        normal: unit vector perpendicular to the visible side of the surface, in the camera's axes:
            x to the right of the picture, y up, z from the scene towards the camera (right-handed,
            as in OpenGL; a surface seen head-on has (0, 0, 1)).  The mean over the pixel's rays
            that hit a surface, brought back to unit length; (0, 0, 0) where all see the sky.  Round
            objects have the normals of their mesh's triangles: a ball's are within 3 degrees of a
            sphere's.
    """

    rgb: np.ndarray
    foreground: np.ndarray
    objects: np.ndarray
    depth: np.ndarray
    shading: np.ndarray
    albedo: np.ndarray
    normal: np.ndarray


def render(scene: Scene | Arrangement, size: int = IMAGE_SIZE, samples: int = SAMPLES) -> Rendering:
    """Render a scene at ``size`` x ``size`` pixels with ``samples``² rays a pixel."""
    world = _World(scene)
    origin, rays, axes = world.camera_rays(size * samples)
    hit = world.cast(origin, rays)
    lit = np.ones(len(rays), np.float32)
    lit[hit.valid] = world.light(hit, size * samples)
    z = np.where(hit.valid, hit.distance * (rays @ -axes[2]), FAR)
    normal = np.zeros_like(rays)
    normal[hit.valid] = hit.normal @ axes.T

    def pixels(values: np.ndarray) -> np.ndarray:
        grid = values.reshape(size, samples, size, samples, -1).astype(np.float64)
        mean = grid.mean(axis=(1, 3)).astype(np.float32)
        return mean[..., 0] if values.ndim == 1 else mean

    return Rendering(
        rgb=pixels(hit.albedo * lit[:, None]),
        foreground=pixels((hit.item >= 0).astype(np.float32)),
        objects=np.stack([pixels((hit.item == i).astype(np.float32)) for i in range(world.items)]),
        depth=pixels(np.log(np.clip(z, NEAR, FAR))),
        shading=pixels(lit),
        albedo=pixels(hit.albedo),
        normal=_unit(pixels(normal)),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., axis) at length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


@dataclass
class _Hit:
    valid: np.ndarray  # (ray,) bool
    point: np.ndarray  # (hit, 3), valid rays only
    normal: np.ndarray  # (hit, 3), facing the ray
    distance: np.ndarray  # (ray,)
    albedo: np.ndarray  # (ray, rgb)
    item: np.ndarray  # (ray,) int, which object; -1 where none


class _World:
    """A scene handed to Embree; a single object's bounding sphere sits above the origin."""

    def __init__(self, scene: Scene | Arrangement) -> None:
        self.scene = scene
        self.embree = EmbreeScene()
        self.albedo: list[RGB] = []
        self.owner: list[int] = []  # of each mesh, the object it is a part of
        if isinstance(scene, Arrangement):
            items = scene.items
        else:
            place = (0.0, 0.0, 0.0)
            items = (Item(scene.category, scene.color, scene.yaw, scene.lying, 1.0, place),)
        self.items = len(items)
        vertices = []
        for i, item in enumerate(items):
            turn = item.scale * _about_z(item.yaw)
            for part in object_parts(item.category, item.lying):
                vertices.append(part.vertices @ turn.T + item.place)
                self._add(vertices[-1], part.triangles, part.color or OBJECT_COLORS[item.color], i)
        everything = np.concatenate(vertices)
        self.center = (everything.min(0) + everything.max(0)) / 2
        self.radius = float(np.linalg.norm(everything - self.center, axis=1).max())
        self._add_room()

    def _add(self, vertices: np.ndarray, faces: np.ndarray, color: RGB, owner: int = -1) -> None:
        TriangleMesh(self.embree, vertices.astype(np.float32), faces.astype(np.int32))
        self.albedo.append(color)
        self.owner.append(owner)

    def _add_room(self) -> None:
        r = _FLOOR_REACH
        square = np.array([[0, 1, 2], [0, 2, 3]])
        floor = np.array([[-r, -r, 0], [r, -r, 0], [r, r, 0], [-r, r, 0]])
        self._add(floor, square, FLOOR_COLORS[self.scene.floor])
        for azimuth, distance in self.scene.walls:
            h = _WALL_HEIGHT
            panel = np.array([[0, -r, 0], [0, r, 0], [0, r, h], [0, -r, h]])
            panel[:, 0] = -distance
            wall = self.scene.wall
            if wall is None:
                raise ValueError("a scene with walls names their colour")
            self._add(panel @ _about_z(azimuth).T, square, WALL_COLORS[wall])

    def camera_rays(self, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Origin (3,), unit directions (width², 3) and the camera's axes, rows right, up, back."""
        s = self.scene
        tangent = np.tan(np.radians(s.field_of_view) / 2)
        right, up, back = camera_axes(s.elevation, s.roll)
        if isinstance(s, Arrangement):
            origin, offset = np.array(LOOK_AT) + back * s.distance, (0.0, 0.0)
        else:
            origin, offset = self.center + back * self.radius / (s.size * tangent), s.offset
        # The lens is shifted, not the camera turned: the object keeps its shape off-centre.
        ticks = (np.arange(width) + 0.5) / width * 2 - 1
        across = (ticks - 2 * offset[0]) * tangent
        above = (-ticks - 2 * offset[1]) * tangent
        rays = -back + across[None, :, None] * right + above[:, None, None] * up
        rays = rays.reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        axes = np.stack([right, up, back])
        return origin.astype(np.float32), rays.astype(np.float32), axes.astype(np.float32)

    def cast(self, origin: np.ndarray, rays: np.ndarray) -> _Hit:
        starts = np.tile(origin, (len(rays), 1))
        found = self.embree.run(starts, rays, output=True)
        valid = found["geomID"] >= 0
        normal = found["Ng"][valid]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        facing = np.sign(-(normal * rays[valid]).sum(1, keepdims=True))
        distance = np.where(valid, found["tfar"], np.inf).astype(np.float32)
        albedo = np.array([*self.albedo, SKY], np.float32)[found["geomID"]]  # -1 is the sky
        return _Hit(
            valid=valid,
            point=(starts + rays * np.where(valid, distance, 0)[:, None])[valid],
            normal=normal * facing,
            distance=distance,
            albedo=albedo,
            item=np.array([*self.owner, -1])[found["geomID"]],
        )

    def light(self, hit: _Hit, width: int) -> np.ndarray:
        """Shading (hit,) in 0..1: ambient floor + visible sky + visible lamp."""
        azimuth, elevation = np.radians([self.scene.lamp_azimuth, self.scene.lamp_elevation])
        lamp = np.array(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ],
            np.float32,
        )
        total = _AMBIENT_FLOOR + _LAMP * self._visible(hit, np.arange(len(hit.point)), lamp)
        # Neighbouring rays take different quarters of the sky; a pixel sees all of it.
        row, column = np.divmod(np.flatnonzero(hit.valid), width)
        quarter = (row % 2) * 2 + column % 2
        for which, directions in enumerate(_sky_directions()):
            mine = np.flatnonzero(quarter == which)
            norm = directions[:, 2].sum()
            for direction in directions:
                total[mine] += _AMBIENT_SKY / norm * self._visible(hit, mine, direction)
        return np.minimum(total, 1.0)

    def _visible(self, hit: _Hit, which: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Cosine towards ``direction`` where nothing is in the way, else 0; (which,)."""
        cosine = np.maximum(hit.normal[which] @ direction, 0).astype(np.float32)
        ask = np.flatnonzero(cosine > 0)
        points = hit.point[which[ask]] + _LIFT * hit.normal[which[ask]]
        rays = np.tile(direction.astype(np.float32), (len(points), 1))
        blocked = self.embree.run(points.astype(np.float32), rays, query="OCCLUDED") >= 0
        cosine[ask[blocked]] = 0
        return cosine


@lru_cache(maxsize=1)
def _sky_directions() -> list[np.ndarray]:
    """24 directions spread over the upper hemisphere (a Fibonacci lattice), in four quarters."""
    k = np.arange(24) + 0.5
    z = k / 24
    angle = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z**2)
    every = np.column_stack([ring * np.cos(angle), ring * np.sin(angle), z])
    return [every[start::4] for start in range(4)]


def _about_z(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
