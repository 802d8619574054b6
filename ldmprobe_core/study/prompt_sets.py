"""Built-in prompt sets, and the vocabulary of the tabletop scenes."""

from __future__ import annotations

import numpy as np

OBJECTS = (
    "lemon", "orange", "banana", "pineapple", "strawberry", "mushroom", "teapot", "coffee mug",
    "vase", "rocking chair", "piano", "acoustic guitar", "violin", "backpack", "umbrella",
    "running shoe", "sports car", "school bus", "mountain bike", "lighthouse", "castle",
    "golden retriever", "tabby cat", "goldfish",
)  # fmt: skip
"""Nouns of the set ``objects``, for models trained on photographs; most are ImageNet-1k classes."""
PLACES = (
    "on a wooden table", "on a beach", "in a garden", "in a bright room", "in the snow",
    "on grass", "on a stone floor", "on a street", "against a plain wall", "at sunset",
)  # fmt: skip


def object_prompts(count: int, seed: int) -> list[tuple[str, str]]:
    """Make ``count`` pairs (prompt, object) of the set ``objects``, balanced over the objects."""
    rng = np.random.default_rng([count, seed])
    orders = {name: rng.permutation(len(PLACES)) for name in OBJECTS}
    pairs = []
    for i in range(count):
        name = OBJECTS[i % len(OBJECTS)]
        setting = PLACES[orders[name][i // len(OBJECTS) % len(PLACES)]]
        article = "an" if name[0] in "aeiou" else "a"
        pairs.append((f"a photo of {article} {name} {setting}", name))
    return pairs


def tabletop_prompts(count: int, seed: int) -> list[tuple[str, str]]:
    """Make ``count`` pairs (caption, category) of the set ``tabletop``, balanced over categories.

    A caption repeats only after all captions of its category have been used.
    """
    rng = np.random.default_rng([count, seed])
    decks = {}
    for category in CATEGORIES:
        colors = [FRUIT_COLORS[category]] if category in FRUIT_COLORS else list(OBJECT_COLORS)
        deck = [
            caption(category, color, floor, wall)
            for color in colors
            for floor in FLOOR_COLORS
            for wall in (None, *WALL_COLORS)
        ]
        decks[category] = [deck[i] for i in rng.permutation(len(deck))]
    pairs = []
    for i in range(count):
        category = CATEGORIES[i % len(CATEGORIES)]
        deck = decks[category]
        pairs.append((deck[i // len(CATEGORIES) % len(deck)], category))
    return pairs


RGB = tuple[float, float, float]

OBJECT_COLORS: dict[str, RGB] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.13, 0.65, 0.20),
    "blue": (0.15, 0.28, 0.85),
    "yellow": (0.93, 0.83, 0.12),
    "orange": (0.95, 0.50, 0.08),
    "purple": (0.50, 0.15, 0.68),
    "pink": (0.95, 0.50, 0.68),
    "cyan": (0.10, 0.70, 0.75),
}
FLOOR_COLORS: dict[str, RGB] = {
    "gray": (0.55, 0.55, 0.55),
    "brown": (0.55, 0.38, 0.26),
    "beige": (0.82, 0.74, 0.58),
    "black": (0.16, 0.16, 0.18),
}
WALL_COLORS: dict[str, RGB] = {
    "white": (0.90, 0.90, 0.90),
    "gray": (0.50, 0.50, 0.50),
    "beige": (0.80, 0.71, 0.56),
    "blue": (0.45, 0.55, 0.72),
}
FRUIT_COLORS: dict[str, str] = {"lemon": "yellow", "orange": "orange"}
"""Category to its colour, for those with a fixed colour that captions do not name."""

CATEGORIES: tuple[str, ...] = (
    "ball",
    "cube",
    "cone",
    "cylinder",
    "ring",
    "armchair",
    "table",
    "mug",
    "car",
    "house",
    "lemon",
    "orange",
)


def caption(category: str, color: str, floor: str, wall: str | None) -> str:
    """Build the caption of a scene, such as ``a red cube on a gray floor, white wall``."""
    return f"{thing_phrase(category, color)} {place_phrase(floor, wall)}"


def thing_phrase(category: str, color: str) -> str:
    """Build the phrase for an object, such as ``a red cube``; fruits get no colour word."""
    name = category if category in FRUIT_COLORS else f"{color} {category}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def place_phrase(floor: str, wall: str | None) -> str:
    """Build the phrase for floor and wall, such as ``on a gray floor, white wall``."""
    behind = f", {wall} wall" if wall else ""
    return f"on a {floor} floor{behind}"
