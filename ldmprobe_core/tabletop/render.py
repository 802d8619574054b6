"""Ray caster of scenes: image and ground-truth maps.

The light is one directional lamp with hard shadows, and an ambient sky sampled in fixed directions.
So images are free of noise, and ``rgb = albedo * shading`` holds exactly for every ray.  Rays are
cast by Intel Embree through ``embreex``.
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
"""Number of rays per pixel along each axis."""
NEAR, FAR = 1.0, 12.0
"""Depth is clipped to this range, in scene units, before the logarithm."""
SKY: RGB = (0.80, 0.86, 0.92)

_AMBIENT_FLOOR, _AMBIENT_SKY, _LAMP = (
    0.12,
    0.33,
    0.55,
)  # parts of the light; their sum is 1, so no pixel is overexposed
_WALL_HEIGHT, _FLOOR_REACH = 6.0, 40.0
_SAME_POINT = 1e-2  # largest distance along a ray between two hits of the same point
_LIFT = 2e-3  # distance of secondary rays' start from the surface, so that they do not hit it


@dataclass(frozen=True)
class Rendering:
    """Image of a scene with its ground-truth maps, all float32.

    Attributes:
        rgb: (y, x, rgb) display values in 0..1 (no gamma).
        foreground: (y, x), fraction of each pixel that objects cover.
        objects: (object, y, x), fraction of each pixel that each object covers.
        depth: (y, x), mean of log z over the pixel, with z along the camera's axis, clipped to
            `NEAR`..`FAR`; larger is farther.
        shading: (y, x), light arriving at the surface, 0..1; 1 in the sky.
        albedo: (y, x, rgb), colour of the surface, 0..1.
        normal: (y, x, axis), unit normals of the visible side of the surface, in the camera's axes:
            x to the right of the image, y up, z from the scene towards the camera (right-handed, as
            in OpenGL; a surface seen head-on has (0, 0, 1)).  A pixel's normal is the normalised
            mean over its rays that hit a surface; (0, 0, 0) if all rays reach the sky.  Round
            objects have the normals of their mesh's triangles, which for a ball are within 3
            degrees of a sphere's.
    """

    rgb: np.ndarray
    foreground: np.ndarray
    objects: np.ndarray
    depth: np.ndarray
    shading: np.ndarray
    albedo: np.ndarray
    normal: np.ndarray


def render(scene: Scene | Arrangement, size: int = IMAGE_SIZE, samples: int = SAMPLES) -> Rendering:
    """Render a scene at ``size`` x ``size`` pixels with ``samples``² rays per pixel."""
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


def correspondences(source: Scene, target: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Find corresponding points of two images that show the same object.

    Args:
        source, target: scenes of the same object; all their other parameters may differ.
        size: height and width of the source image in pixels.

    Returns:
        (y, x, 2) float64: for the centre of each source pixel on the object, the row and column in
        the target image, as fractions 0..1 of its height and width.  NaN where the pixel is not on
        the object, or its point is hidden in the target image or outside it.

    Raises:
        ValueError: the objects differ.
    """
    if (source.category, source.lying) != (target.category, target.lying):
        raise ValueError(f"the objects differ ({source.category}, {target.category})")
    first, second = _World(source), _World(target)
    origin, rays, _ = first.camera_rays(size)
    hit = first.cast(origin, rays)
    on_object = hit.item >= 0
    # A rotation matrix multiplied from the right rotates back: `source.yaw` is undone, which gives
    # points of the unrotated mesh, and `target.yaw` is then applied.
    points = hit.point[on_object[hit.valid]] @ _about_z(source.yaw) @ _about_z(target.yaw).T
    places, camera = second.project(points)
    distance = np.linalg.norm(points - camera, axis=1)
    toward = ((points - camera) / distance[:, None]).astype(np.float32)
    seen = second.cast(camera, toward)
    visible = (seen.item >= 0) & (np.abs(seen.distance - distance) < _SAME_POINT)
    inside = ((places >= 0) & (places <= 1)).all(1)
    result = np.full((size * size, 2), np.nan)
    result[on_object] = np.where((visible & inside)[:, None], places, np.nan)
    return result.reshape(size, size, 2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Normalise vectors (..., axis) to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


@dataclass
class _Hit:
    """First points at which rays hit a scene."""

    valid: np.ndarray  # (ray,) bool
    point: np.ndarray  # (hit, 3), valid rays only
    normal: np.ndarray  # surface normals (hit, 3), facing the ray
    distance: np.ndarray  # (ray,)
    albedo: np.ndarray  # surface colour at the hit of each ray, (ray, rgb)
    item: np.ndarray  # (ray,) int, which object; -1 where none


class _World:
    """Geometry of a scene in Embree, with its camera and lights."""

    def __init__(self, scene: Scene | Arrangement) -> None:
        self.scene = scene
        self.embree = EmbreeScene()
        self.albedo: list[RGB] = []
        self.owner: list[int] = []  # index of the object to which each mesh belongs, or -1
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
        all_vertices = np.concatenate(vertices)
        self.center = (all_vertices.min(0) + all_vertices.max(0)) / 2
        self.radius = float(np.linalg.norm(all_vertices - self.center, axis=1).max())
        self._add_room()

    def _add(self, vertices: np.ndarray, faces: np.ndarray, color: RGB, owner: int = -1) -> None:
        """Add a mesh; ``owner`` is the index of its object, -1 for floor and walls."""
        TriangleMesh(self.embree, vertices.astype(np.float32), faces.astype(np.int32))
        self.albedo.append(color)
        self.owner.append(owner)

    def _add_room(self) -> None:
        """Add the floor and the walls."""
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
        """Origin (3,) and unit directions (width², 3) of rays; axes (3, 3): right, up, back."""
        s = self.scene
        tangent = np.tan(np.radians(s.field_of_view) / 2)
        right, up, back = camera_axes(s.elevation, s.roll)
        if isinstance(s, Arrangement):
            origin, offset = np.array(LOOK_AT) + back * s.distance, (0.0, 0.0)
        else:
            origin, offset = self.center + back * self.radius / (s.size * tangent), s.offset
        # A shifted lens, unlike a turned camera, does not change the object's shape.
        ticks = (np.arange(width) + 0.5) / width * 2 - 1
        across = (ticks - 2 * offset[0]) * tangent
        above = (-ticks - 2 * offset[1]) * tangent
        rays = -back + across[None, :, None] * right + above[:, None, None] * up
        rays = rays.reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        axes = np.stack([right, up, back])
        return origin.astype(np.float32), rays.astype(np.float32), axes.astype(np.float32)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project points (n, 3) into the image: the inverse of `camera_rays`.

        Returns:
            row and column of each point as fractions of the image's height and width, (n, 2), and
            the camera's position (3,) float32.
        """
        s = self.scene
        origin, _, (right, up, back) = self.camera_rays(1)
        offset = (0.0, 0.0) if isinstance(s, Arrangement) else s.offset
        away = points - origin
        depth = -(away @ back) * np.tan(np.radians(s.field_of_view) / 2)
        across, above = away @ right / depth + 2 * offset[0], away @ up / depth + 2 * offset[1]
        return np.column_stack([1 - above, 1 + across]) / 2, origin

    def cast(self, origin: np.ndarray, rays: np.ndarray) -> _Hit:
        """Find where rays from a point, with unit directions (ray, 3), first hit the scene."""
        starts = np.tile(origin, (len(rays), 1))
        hits = self.embree.run(starts, rays, output=True)
        valid = hits["geomID"] >= 0
        normal = hits["Ng"][valid]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        facing = np.sign(-(normal * rays[valid]).sum(1, keepdims=True))
        distance = np.where(valid, hits["tfar"], np.inf).astype(np.float32)
        albedo = np.array([*self.albedo, SKY], np.float32)[
            hits["geomID"]
        ]  # index -1 stands for rays that hit the sky
        return _Hit(
            valid=valid,
            point=(starts + rays * np.where(valid, distance, 0)[:, None])[valid],
            normal=normal * facing,
            distance=distance,
            albedo=albedo,
            item=np.array([*self.owner, -1])[hits["geomID"]],
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
        # To save time, each ray samples a quarter of the sky's directions.  Neighbouring rays take
        # different quarters, so that the rays of a pixel together sample the whole sky.
        row, column = np.divmod(np.flatnonzero(hit.valid), width)
        quarter = (row % 2) * 2 + column % 2
        for number, directions in enumerate(_sky_directions()):
            members = np.flatnonzero(quarter == number)
            norm = directions[:, 2].sum()
            for direction in directions:
                total[members] += _AMBIENT_SKY / norm * self._visible(hit, members, direction)
        return np.minimum(total, 1.0)

    def _visible(self, hit: _Hit, members: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Cosine (member,) of the normal with ``direction``; 0 if the direction is blocked.

        Args:
            members: indices of the hits.
        """
        cosine = np.maximum(hit.normal[members] @ direction, 0).astype(np.float32)
        facing = np.flatnonzero(cosine > 0)
        points = hit.point[members[facing]] + _LIFT * hit.normal[members[facing]]
        rays = np.tile(direction.astype(np.float32), (len(points), 1))
        blocked = self.embree.run(points.astype(np.float32), rays, query="OCCLUDED") >= 0
        cosine[facing[blocked]] = 0
        return cosine


@lru_cache(maxsize=1)
def _sky_directions() -> list[np.ndarray]:
    """Four sets of 6 directions, together a Fibonacci lattice of the upper hemisphere."""
    k = np.arange(24) + 0.5
    z = k / 24
    angle = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z**2)
    directions = np.column_stack([ring * np.cos(angle), ring * np.sin(angle), z])
    return [directions[start::4] for start in range(4)]


def _about_z(degrees: float) -> np.ndarray:
    """Matrix (3, 3) of a rotation about the z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
