"""Scenes of the tabletop: random draws of their parameters, and their captions."""

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
"""Probability of each wall layout; with oblique walls and corners position predicts depth less."""


@dataclass(frozen=True)
class Scene:
    """Scene of one object on a floor, with a camera and a lamp.

    Lengths are in scene units, angles in degrees.

    Attributes:
        category: one of `CATEGORIES`.
        color: one of `OBJECT_COLORS`, or the natural colour of a fruit.
        floor: one of `FLOOR_COLORS`.
        wall: one of `WALL_COLORS`; None without walls.
        walls: azimuth (direction of the normal, relative to the camera's) and distance behind the
            object of each wall.
        yaw: rotation of the object about the vertical, relative to the camera.
        lying: whether a ring lies flat instead of standing.
        size: apparent diameter of the object's bounding sphere, as a fraction of the frame's width.
        offset: position of the object's centre relative to the image's, (right, up), as a fraction
            of the frame's width.
        elevation, roll, field_of_view: angles of the camera.
        lamp_azimuth, lamp_elevation: direction of the directional light, azimuth relative to the
            camera.
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
    """One object of an `Arrangement`.

    Attributes:
        category, color, yaw, lying: see `Scene`.
        scale: scale factor of the mesh.
        place: (x, y, z) of the centre of its underside in scene units, x towards the camera, y to
            the right, z up; the object stands on the floor at z = 0 and floats above it at z > 0.
    """

    category: str
    color: str
    yaw: float
    lying: bool
    scale: float
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Arrangement:
    """Scene of several objects, on the floor or above it; other fields are those of `Scene`.

    Attributes:
        items: two or three objects of distinct categories.
        distance: distance from the camera to the point it looks at, `LOOK_AT`.
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
"""Point (x, y, z) at the image's centre, in an `Arrangement`."""


def camera_axes(elevation: float, roll: float) -> np.ndarray:
    """Unit vectors right, up and back (towards the camera) of a camera, (axis, xyz).

    Args:
        elevation, roll: angles in degrees.
    """
    e, r = np.radians([elevation, roll])
    back = np.array([np.cos(e), 0.0, np.sin(e)])
    up = np.array([-np.sin(e), 0.0, np.cos(e)])
    right = np.cross(-back, up)
    return np.stack([np.cos(r) * right + np.sin(r) * up, -np.sin(r) * right + np.cos(r) * up, back])


def arrangement_caption(arrangement: Arrangement) -> str:
    """Caption of several objects, such as ``a red cube and a blue ball on a gray floor``.

    The order of the objects has no meaning.  The embedded model was trained on captions of one
    object only.
    """
    *most, last = (thing_phrase(item.category, item.color) for item in arrangement.items)
    things = f"{', '.join(most)} and {last}"
    return f"{things} {place_phrase(arrangement.floor, arrangement.wall)}"


def scene_caption(scene: Scene) -> str:
    """Caption of a scene, such as ``a red cube on a gray floor, white wall``."""
    return caption(scene.category, scene.color, scene.floor, scene.wall)


def caption_words() -> list[str]:
    """Sorted words of all possible captions; the tokenizer has one token for each."""
    words = {"a", "an", "on", "floor", "wall", ","}
    words.update(CATEGORIES, OBJECT_COLORS, FLOOR_COLORS, WALL_COLORS)
    return sorted(words)


_YAW_LIMIT = {"ring": 55.0, "armchair": 65.0, "mug": 60.0}
"""Largest yaw in degrees of objects that are hard to recognise from behind or edge-on."""


def sample_scene(seed: int) -> Scene:
    """Draw a scene; equal seeds give equal scenes."""
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
    """Draw the colour of an object; each fruit has a fixed one."""
    return FRUIT_COLORS.get(category) or str(rng.choice(list(OBJECT_COLORS)))


def _sample_yaw(rng: np.random.Generator, category: str) -> float:
    """Draw the rotation of an object about the vertical axis, in degrees."""
    limit = _YAW_LIMIT.get(category, 180.0)
    yaw = float(rng.uniform(-limit, limit))
    if category == "mug" and rng.random() < 0.5:
        yaw += 180.0  # the mug's handle is visible on either side
    return yaw


def _sample_lamp(rng: np.random.Generator, walls: tuple[tuple[float, float], ...]) -> float:
    """Draw the lamp's azimuth in degrees, in front of all walls."""
    azimuth = float(rng.uniform(-180, 180))
    while any(np.cos(np.radians(azimuth - facing)) < 0.1 for facing, _ in walls):
        azimuth = float(rng.uniform(-180, 180))  # a lamp behind a wall would light nothing
    return azimuth


_OBJECT_RADIUS = 0.62
"""Radius in scene units of a vertical cylinder that contains any mesh."""


def sample_arrangement(seed: int) -> Arrangement:
    """Draw an arrangement of two or three objects; equal seeds give equal arrangements.

    An object is placed on the line of sight through a point of the image: half of the objects where
    the line meets the floor, the others nearer to the camera, above the floor.  The size is drawn
    as it appears in the image.  So apparent size is independent of distance, and height in the
    image predicts distance less; in half of the arrangements the first two objects have the same
    height in the image.
    """
    rng = np.random.default_rng([20_27, seed])
    while True:
        arrangement = _try_arrangement(rng)
        if arrangement is not None:
            return arrangement


def _try_arrangement(rng: np.random.Generator) -> Arrangement | None:
    """Draw one arrangement; None if an object cannot be placed."""
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
    positions: list[tuple[float, float]] = []  # of the objects in the image, (right, up)
    same_height = rng.random() < 0.5
    for category in categories:
        for _ in range(60):
            across, above = float(rng.uniform(-0.75, 0.75)), float(rng.uniform(-0.8, 0.35))
            if same_height and len(positions) == 1:
                above = positions[0][1] + float(rng.normal(0, 0.02))
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
                np.hypot(across - a, above - b) > 0.45 for a, b in positions
            ):
                color, yaw = _sample_color(rng, category), _sample_yaw(rng, category)
                x, y, z = (float(value) for value in place)
                lying = bool(rng.random() < 0.3)
                items.append(Item(category, color, yaw, lying, scale, (x, y, z)))
                positions.append((across, above))
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
    """Return whether an object would be clear of other objects, of walls and of the camera."""
    radius = _OBJECT_RADIUS * scale
    for azimuth, behind in walls:
        facing = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
        if place[0] * facing[0] + place[1] * facing[1] - radius < -behind:
            return False
    if place[0] > 3.0 or place[0] < -4.0:
        return False
    return all(
        np.hypot(place[0] - item.place[0], place[1] - item.place[1])
        > radius + _OBJECT_RADIUS * item.scale
        for item in items
    )


def _sample_walls(rng: np.random.Generator, layout: str) -> tuple[tuple[float, float], ...]:
    """Draw azimuth in degrees and distance of each wall of a layout."""

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
