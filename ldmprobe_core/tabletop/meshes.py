"""Triangle meshes of the twelve objects, which stand on the floor at the origin.

Each object is a list of parts; a part whose colour is None gets the colour of the scene's object.
Thin parts such as table legs and mug handles are thickened, so that a small VAE preserves them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import trimesh
from trimesh.creation import box, cylinder, icosphere, revolve, torus

from ldmprobe_core.study.prompt_sets import RGB

_Colored = tuple[trimesh.Trimesh, RGB | None]


class Part(NamedTuple):
    """Part of an object: vertices (n, 3) float64, triangles (m, 3) int32, fixed colour or None."""

    vertices: np.ndarray
    triangles: np.ndarray
    color: RGB | None


_DARK: RGB = (0.13, 0.12, 0.12)
_ROOF: RGB = (0.33, 0.20, 0.15)
_WINDOW: RGB = (0.72, 0.84, 0.92)
_CREAM: RGB = (0.93, 0.91, 0.86)
_LEAF: RGB = (0.16, 0.50, 0.14)


@cache
def object_parts(category: str, lying: bool = False) -> tuple[Part, ...]:
    """Parts of one object, facing +x (towards the camera at yaw 0) and standing on z = 0.

    Args:
        category: one of `CATEGORIES`.
        lying: whether a ring lies flat instead of standing.

    Raises:
        KeyError: the category has no mesh.
    """
    built = _ring(lying) if category == "ring" else _BUILDERS[category]()
    return tuple(
        Part(np.asarray(mesh.vertices), np.asarray(mesh.faces, np.int32), color)
        for mesh, color in built
    )


def _block(size: tuple[float, float, float], center: tuple[float, float, float]) -> trimesh.Trimesh:
    mesh = box(extents=size)
    mesh.apply_translation(center)
    return mesh


def _turn(mesh: trimesh.Trimesh, degrees: float, axis: tuple[int, int, int]) -> trimesh.Trimesh:
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.radians(degrees), axis))
    return mesh


def _ball() -> list[_Colored]:
    mesh = icosphere(subdivisions=4, radius=0.45)
    mesh.apply_translation((0, 0, 0.45))
    return [(mesh, None)]


def _cube() -> list[_Colored]:
    return [(_block((0.72, 0.72, 0.72), (0, 0, 0.36)), None)]


def _cone() -> list[_Colored]:
    profile = np.array([[0, 0], [0.42, 0], [0, 0.95]])
    return [(revolve(profile, sections=96), None)]


def _cylinder() -> list[_Colored]:
    mesh = cylinder(radius=0.34, height=0.85, sections=96)
    mesh.apply_translation((0, 0, 0.425))
    return [(mesh, None)]


def _ring(lying: bool) -> list[_Colored]:
    mesh = torus(major_radius=0.36, minor_radius=0.15, major_sections=96, minor_sections=48)
    if lying:
        mesh.apply_translation((0, 0, 0.15))
    else:
        _turn(mesh, 90, (0, 1, 0))
        mesh.apply_translation((0, 0, 0.51))
    return [(mesh, None)]


def _armchair() -> list[_Colored]:
    frame = [
        _block((0.78, 0.90, 0.24), (0.0, 0.0, 0.22)),
        _block((0.20, 0.90, 0.92), (-0.33, 0.0, 0.56)),
        _block((0.72, 0.18, 0.50), (0.03, -0.38, 0.42)),
        _block((0.72, 0.18, 0.50), (0.03, 0.38, 0.42)),
    ]
    feet = [_block((0.1, 0.1, 0.10), (x, y, 0.05)) for x in (-0.32, 0.32) for y in (-0.36, 0.36)]
    cushion = _block((0.56, 0.56, 0.12), (0.09, 0.0, 0.40))
    return [(trimesh.util.concatenate(frame), None), (cushion, _CREAM)] + [
        (foot, _DARK) for foot in feet
    ]


def _table() -> list[_Colored]:
    top = _block((0.80, 1.05, 0.12), (0, 0, 0.64))
    legs = [_block((0.12, 0.12, 0.58), (x, y, 0.29)) for x in (-0.32, 0.32) for y in (-0.44, 0.44)]
    return [(top, None)] + [(leg, _DARK) for leg in legs]


def _mug() -> list[_Colored]:
    outside = np.array([[0, 0], [0.34, 0], [0.34, 0.74], [0.28, 0.74]])
    inside = np.array([[0.28, 0.74], [0.28, 0.10], [0, 0.10]])
    handle = torus(major_radius=0.22, minor_radius=0.075, major_sections=64, minor_sections=32)
    _turn(handle, 90, (1, 0, 0))
    _turn(handle, 90, (0, 0, 1))
    handle.apply_translation((0, 0.36, 0.38))
    # Remove the half of the handle's ring that would be visible inside the mug.
    handle.update_faces(handle.triangles_center[:, 1] > 0.31)
    return [
        (revolve(outside, sections=96), None),
        (revolve(inside, sections=96), _CREAM),
        (handle, None),
    ]


def _car() -> list[_Colored]:
    body = _block((1.20, 0.54, 0.26), (0, 0, 0.29))
    cabin = _prism([(-0.46, 0.42), (0.26, 0.42), (0.10, 0.68), (-0.34, 0.68)], half_width=0.24)
    panes = [
        _prism([(-0.38, 0.45), (-0.13, 0.45), (-0.13, 0.64), (-0.29, 0.64)], half_width=0.25),
        _prism([(-0.06, 0.45), (0.20, 0.45), (0.08, 0.64), (-0.06, 0.64)], half_width=0.25),
        _prism([(0.12, 0.44), (0.27, 0.44), (0.13, 0.65), (0.11, 0.65)], half_width=0.20),
        _prism([(-0.47, 0.44), (-0.30, 0.44), (-0.32, 0.65), (-0.36, 0.65)], half_width=0.20),
    ]
    wheels = []
    for x in (-0.36, 0.36):
        for y in (-0.26, 0.26):
            wheel = cylinder(radius=0.17, height=0.12, sections=48)
            _turn(wheel, 90, (1, 0, 0))
            wheel.apply_translation((x, y, 0.17))
            wheels.append(wheel)
    return (
        [(body, None), (cabin, None)]
        + [(pane, _WINDOW) for pane in panes]
        + [(wheel, _DARK) for wheel in wheels]
    )


def _house() -> list[_Colored]:
    walls = _block((0.66, 0.82, 0.58), (0, 0, 0.29))
    gable = _prism([(-0.33, 0.58), (0.33, 0.58), (0.0, 0.86)], half_width=0.41)
    slopes = [
        _prism([(-0.40, 0.54), (0.0, 0.89), (0.0, 0.97), (-0.44, 0.58)], half_width=0.46),
        _prism([(0.40, 0.54), (0.44, 0.58), (0.0, 0.97), (0.0, 0.89)], half_width=0.46),
    ]
    openings = [
        (_block((0.02, 0.20, 0.36), (0.335, 0.0, 0.18)), _DARK),
        (_block((0.02, 0.17, 0.18), (0.335, 0.26, 0.33)), _WINDOW),
        (_block((0.02, 0.17, 0.18), (0.335, -0.26, 0.33)), _WINDOW),
        (_block((0.02, 0.20, 0.18), (-0.335, 0.0, 0.31)), _WINDOW),
        (_block((0.18, 0.02, 0.18), (0.0, 0.415, 0.31)), _WINDOW),
        (_block((0.18, 0.02, 0.18), (0.0, -0.415, 0.31)), _WINDOW),
    ]
    parts: list[_Colored] = [(walls, None), (gable, None)]
    return parts + [(slope, _ROOF) for slope in slopes] + list(openings)


def _lemon() -> list[_Colored]:
    along = np.linspace(-1, 1, 81)
    # The outline is an ellipse with a nub at either end.
    radius = 0.34 * np.sqrt(np.clip(1 - (along / 0.92) ** 2, 0, None))
    nub = 0.09 * np.sqrt(np.clip(1 - along**2, 0, None))
    profile = np.column_stack([np.maximum(radius, nub), along * 0.52])
    mesh = _turn(revolve(profile, sections=96), 90, (1, 0, 0))
    mesh.apply_translation((0, 0, 0.34))
    return [(mesh, None)]


def _orange() -> list[_Colored]:
    fruit = icosphere(subdivisions=4, radius=0.42)
    fruit.apply_translation((0, 0, 0.42))
    stem = cylinder(radius=0.035, height=0.14, sections=24)
    stem.apply_translation((0, 0, 0.88))
    leaf = icosphere(subdivisions=3, radius=1.0)
    leaf.apply_scale((0.21, 0.11, 0.03))
    leaf.apply_translation((0.19, 0, 0.93))
    return [(fruit, None), (stem, _LEAF), (leaf, _LEAF)]


def _prism(outline: list[tuple[float, float]], half_width: float) -> trimesh.Trimesh:
    """Prism of a convex (x, z) outline, extruded along y by ``half_width`` to both sides."""
    points = [(x, side * half_width, z) for side in (-1, 1) for x, z in outline]
    return trimesh.convex.convex_hull(np.array(points))


_BUILDERS = {
    "ball": _ball,
    "cube": _cube,
    "cone": _cone,
    "cylinder": _cylinder,
    "armchair": _armchair,
    "table": _table,
    "mug": _mug,
    "car": _car,
    "house": _house,
    "lemon": _lemon,
    "orange": _orange,
}
