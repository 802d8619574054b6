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
    place_phrase,
    thing_phrase,
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


@dataclass(frozen=True)
class Item:
    """One object of several.

    Attributes:
        category, color, yaw, lying: as of a `Scene`.
        scale: its size, as a multiple of the mesh's.
        place: (x, y, z) of the middle of its underside in scene units, x towards the camera, y to
            the right, z up; z = 0 stands on the floor, more floats.
    """

    category: str
    color: str
    yaw: float
    lying: bool
    scale: float
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Arrangement:
    """Several objects at free distances, on the floor or above it; else as a `Scene`.

    Attributes:
        items: two or three, each of a category of its own.
        distance: from the camera to the point it looks at, `LOOK_AT`.
    """

    items: tuple[Item, ...]
    floor: str
    wall: str | None
    walls: tuple[tuple[float, float], ...]
    distance: float
    elevation: float
    roll: float
    field_of_view: float
    lamp_azimuth: float
    lamp_elevation: float


LOOK_AT = (0.0, 0.0, 0.4)
"""Where the camera of an `Arrangement` looks, at the middle of the picture."""


def camera_axes(elevation: float, roll: float) -> np.ndarray:
    """Unit vectors right, up and back (towards the camera), (axis, xyz), of angles in degrees."""
    e, r = np.radians([elevation, roll])
    back = np.array([np.cos(e), 0.0, np.sin(e)])
    up = np.array([-np.sin(e), 0.0, np.cos(e)])
    right = np.cross(-back, up)
    return np.stack([np.cos(r) * right + np.sin(r) * up, -np.sin(r) * right + np.cos(r) * up, back])


def arrangement_caption(arrangement: Arrangement) -> str:
    """In words, such as ``a red cube and a blue ball on a gray floor``; no order is meant.

    The embedded model's captions name one object: it was not trained on these.
    """
    *most, last = (thing_phrase(item.category, item.color) for item in arrangement.items)
    things = f"{', '.join(most)} and {last}"
    return f"{things} {place_phrase(arrangement.floor, arrangement.wall)}"


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
    color = _sample_color(rng, category)
    floor = str(rng.choice(list(FLOOR_COLORS)))
    layout = str(rng.choice(list(WALL_KINDS), p=list(WALL_KINDS.values())))
    wall = None if layout == "none" else str(rng.choice(list(WALL_COLORS)))
    walls = _sample_walls(rng, layout)

    yaw = _sample_yaw(rng, category)
    size = float(rng.uniform(27, 46) / 64)
    reach = min(0.36, 0.5 - 0.30 * size)
    offset = (float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach)))

    lamp_azimuth = _sample_lamp(rng, walls)
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


def _sample_color(rng: np.random.Generator, category: str) -> str:
    return FRUIT_COLORS.get(category) or str(rng.choice(list(OBJECT_COLORS)))


def _sample_yaw(rng: np.random.Generator, category: str) -> float:
    limit = _YAW_LIMIT.get(category, 180.0)
    yaw = float(rng.uniform(-limit, limit))
    if category == "mug" and rng.random() < 0.5:
        yaw += 180.0  # the handle shows on either side
    return yaw


def _sample_lamp(rng: np.random.Generator, walls: tuple[tuple[float, float], ...]) -> float:
    azimuth = float(rng.uniform(-180, 180))
    while any(np.cos(np.radians(azimuth - facing)) < 0.1 for facing, _ in walls):
        azimuth = float(rng.uniform(-180, 180))  # a lamp behind a wall lights nothing
    return azimuth


_BROAD = 0.62
"""Radius of a cylinder about every mesh's middle, in scene units."""


def sample_arrangement(seed: int) -> Arrangement:
    """Draw two or three objects with this seed; the same seed always gives the same ones.

    An object is put on the line of sight through a point of the picture: half of them where it
    meets the floor, the others nearer to the camera, above the floor.  Its size is drawn as it
    appears.  So size does not tell how far away an object is, and height in the picture, where
    floors recede, tells it less; half of the time the first two are at one height.
    """
    rng = np.random.default_rng([20_27, seed])
    while True:
        drawn = _try_arrangement(rng)
        if drawn is not None:
            return drawn


def _try_arrangement(rng: np.random.Generator) -> Arrangement | None:
    """One draw; None where the objects found no room."""
    categories = [str(name) for name in rng.permutation(CATEGORIES)[: rng.integers(2, 4)]]
    floor = str(rng.choice(list(FLOOR_COLORS)))
    layout = str(rng.choice(list(WALL_KINDS), p=list(WALL_KINDS.values())))
    wall = None if layout == "none" else str(rng.choice(list(WALL_COLORS)))
    walls = tuple((azimuth, distance + 1.0) for azimuth, distance in _sample_walls(rng, layout))
    elevation, roll = float(rng.uniform(22, 50)), float(rng.uniform(-20, 20))
    field_of_view, distance = float(rng.uniform(36, 50)), 5.0
    right, up, back = camera_axes(elevation, roll)
    camera = np.array(LOOK_AT) + distance * back
    tangent = np.tan(np.radians(field_of_view) / 2)

    items: list[Item] = []
    seen: list[tuple[float, float]] = []
    level = rng.random() < 0.5
    for category in categories:
        for _ in range(60):
            across, above = float(rng.uniform(-0.75, 0.75)), float(rng.uniform(-0.8, 0.35))
            if level and len(seen) == 1:
                above = seen[0][1] + float(rng.normal(0, 0.02))
            ray = tangent * (across * right + above * up) - back
            share = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.6, 0.95))
            apparent = float(rng.uniform(0.65, 1.05))
            if ray[2] > -0.1:
                continue
            depth = share * camera[2] / -ray[2]
            scale = apparent * depth / distance
            place = camera + ray * depth
            place[2] = max(place[2], 0.0)
            if _has_room(place, scale, items, walls) and all(
                np.hypot(across - a, above - b) > 0.45 for a, b in seen
            ):
                color, yaw = _sample_color(rng, category), _sample_yaw(rng, category)
                x, y, z = (float(value) for value in place)
                lying = bool(rng.random() < 0.3)
                items.append(Item(category, color, yaw, lying, scale, (x, y, z)))
                seen.append((across, above))
                break
        else:
            return None
    return Arrangement(
        items=tuple(items),
        floor=floor,
        wall=wall,
        walls=walls,
        distance=distance,
        elevation=elevation,
        roll=roll,
        field_of_view=field_of_view,
        lamp_azimuth=_sample_lamp(rng, walls),
        lamp_elevation=float(rng.uniform(25, 75)),
    )


def _has_room(
    place: np.ndarray,
    scale: float,
    items: list[Item],
    walls: tuple[tuple[float, float], ...],
) -> bool:
    """Whether an object here stays clear of others, of walls and of the camera's near side."""
    radius = _BROAD * scale
    for azimuth, behind in walls:
        facing = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
        if place[0] * facing[0] + place[1] * facing[1] - radius < -behind:
            return False
    if place[0] > 3.0 or place[0] < -4.0:
        return False
    return all(
        np.hypot(place[0] - item.place[0], place[1] - item.place[1]) > radius + _BROAD * item.scale
        for item in items
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
