"""From a study's prompts to its samples: who is generated, with which seed, in which split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.study import Study
from ldmprobe_core.tabletop.scenes import (
    CATEGORIES,
    FLOOR_COLORS,
    FRUIT_COLORS,
    OBJECT_COLORS,
    WALL_COLORS,
    caption,
)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """One image to be generated.

    Attributes:
        index: position along the run's ``sample`` dimension.
        category: the class its prompt names, where that is known.
    """

    index: int
    prompt: str
    seed: int
    category: str | None
    split: str


def make_samples(study: Study) -> list[Sample]:
    """Every sample of a study, in order; the same study always gives the same samples.

    Splits go by prompt: all samples of a prompt are in one split.
    """
    prompts = study.prompts
    named: list[tuple[str, str | None]]
    if prompts.items is None:
        named = list(tabletop_prompts(prompts.samples, prompts.seed))
    else:
        named = [(prompts.items[i % len(prompts.items)], None) for i in range(prompts.samples)]
    split_of = _split_by_prompt([prompt for prompt, _ in named], study)
    # Seeds count up over all samples, so that a prompt that returns gets another one each time.
    return [
        Sample(i, prompt, prompts.seed + i, category, split_of[prompt])
        for i, (prompt, category) in enumerate(named)
    ]


def tabletop_prompts(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` (caption, category) pairs, balanced over the categories.

    Captions are distinct as long as a category has any left, then they come round again.
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


def _split_by_prompt(prompts: list[str], study: Study) -> dict[str, str]:
    """Deal distinct prompts, shuffled, into the splits; each gets at least one."""
    distinct = sorted(set(prompts))
    order = np.random.default_rng([len(distinct), study.prompts.seed]).permutation(len(distinct))
    split = study.probes.split
    n = len(distinct)
    train = min(max(1, round(split.train * n)), n - 2)
    validation = min(max(1, round(split.validation * n)), n - train - 1)
    names = ["train"] * train + ["validation"] * validation
    names += ["test"] * (n - len(names))
    return {distinct[i]: name for i, name in zip(order, names, strict=True)}
