"""What can stand on the tabletop: sampling a scene and saying it in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.study.prompt_sets import (
    CATEGORIES,
    FLOOR_COLORS,
    FRUIT_COLORS,
    OBJECT_COLORS,
    WALL_COLORS,
    caption,
)

WALL_KINDS = {"none": 0.03, "back": 0.15, "oblique": 0.47, "corner": 0.35}
"""Share of each wall layout; oblique walls and corners keep position from giving depth away."""


@dataclass(frozen=True)
class Scene:
    """One object on a floor, a camera and a lamp.  Lengths are in scene units, angles in degrees.

    Attributes:
        category: one of `CATEGORIES`.
        color: one of `OBJECT_COLORS`; for a fruit, its own colour.
        floor: one of `FLOOR_COLORS`.
        wall: one of `WALL_COLORS`, or None where there is no wall.
        walls: for each wall its azimuth (direction of its normal, relative to the camera's) and
            its distance behind the object.
        yaw: rotation of the object about the vertical, relative to the camera.
        lying: the ring lies flat instead of standing.
        size: apparent diameter of the object's bounding sphere, as a share of the frame's width.
        offset: where the object's centre appears, (right, up), as a share of the frame's width
            from the frame's centre.
        elevation, roll, field_of_view: of the camera.
        lamp_azimuth, lamp_elevation: of the one directional light, azimuth relative to the camera.
    """

    category: str
    color: str
    floor: str
    wall: str | None
    walls: tuple[tuple[float, float], ...]
    yaw: float
    lying: bool
    size: float
    offset: tuple[float, float]
    elevation: float
    roll: float
    field_of_view: float
    lamp_azimuth: float
    lamp_elevation: float


def scene_caption(scene: Scene) -> str:
    """`caption` of a whole scene."""
    return caption(scene.category, scene.color, scene.floor, scene.wall)


def caption_words() -> list[str]:
    """Every word a caption can hold, sorted; the tokenizer gives each a token of its own."""
    words = {"a", "an", "on", "floor", "wall", ","}
    words.update(CATEGORIES, OBJECT_COLORS, FLOOR_COLORS, WALL_COLORS)
    return sorted(words)


_YAW_LIMIT = {"ring": 55.0, "armchair": 65.0, "mug": 60.0}
"""Objects that are hard to tell from behind or edge-on keep their telling side in view."""


def sample_scene(seed: int) -> Scene:
    """Draw the scene with this seed; the same seed always gives the same scene."""
    rng = np.random.default_rng([20_26, seed])
    category = str(rng.choice(CATEGORIES))
    color = FRUIT_COLORS.get(category) or str(rng.choice(list(OBJECT_COLORS)))
    floor = str(rng.choice(list(FLOOR_COLORS)))
    layout = str(rng.choice(list(WALL_KINDS), p=list(WALL_KINDS.values())))
    wall = None if layout == "none" else str(rng.choice(list(WALL_COLORS)))
    walls = _sample_walls(rng, layout)

    limit = _YAW_LIMIT.get(category, 180.0)
    yaw = float(rng.uniform(-limit, limit))
    if category == "mug" and rng.random() < 0.5:
        yaw += 180.0  # the handle shows on either side
    size = float(rng.uniform(27, 46) / 64)
    reach = min(0.36, 0.5 - 0.30 * size)
    offset = (float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach)))

    lamp_azimuth = float(rng.uniform(-180, 180))
    while any(np.cos(np.radians(lamp_azimuth - azimuth)) < 0.1 for azimuth, _ in walls):
        lamp_azimuth = float(rng.uniform(-180, 180))  # a lamp behind a wall lights nothing
    return Scene(
        category=category,
        color=color,
        floor=floor,
        wall=wall,
        walls=walls,
        yaw=yaw,
        lying=bool(rng.random() < 0.3),
        size=size,
        offset=offset,
        elevation=float(rng.uniform(22, 60)),
        roll=float(rng.uniform(-20, 20)),
        field_of_view=float(rng.uniform(32, 50)),
        lamp_azimuth=lamp_azimuth,
        lamp_elevation=float(rng.uniform(25, 75)),
    )


def _sample_walls(rng: np.random.Generator, layout: str) -> tuple[tuple[float, float], ...]:
    def distance() -> float:
        return float(rng.uniform(0.55, 1.9))

    if layout == "none":
        return ()
    if layout == "back":
        return ((float(rng.uniform(-10, 10)), distance()),)
    side = float(rng.choice([-1.0, 1.0]))
    if layout == "oblique":
        return ((side * float(rng.uniform(30, 70)), distance()),)
    first = float(rng.uniform(20, 70))
    return ((first, distance()), (first - 90.0, distance()))
