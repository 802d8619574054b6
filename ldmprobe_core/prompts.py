"""From a study to its samples: who is generated, with which seed, in which split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.pictures import maps_present, picture_names, pictures_digest
from ldmprobe_core.promptfiles import SPLITS, Row, digest_of, read_rows
from ldmprobe_core.study import Images, Prompts, Study
from ldmprobe_core.tabletop.scenes import (
    CATEGORIES,
    FLOOR_COLORS,
    FRUIT_COLORS,
    OBJECT_COLORS,
    WALL_COLORS,
    caption,
)

__all__ = ["SPLITS", "Sample", "make_samples", "pin_inputs", "tabletop_prompts"]

OBJECTS = (
    "lemon", "orange", "banana", "pineapple", "strawberry", "mushroom", "teapot", "coffee mug",
    "vase", "rocking chair", "piano", "acoustic guitar", "violin", "backpack", "umbrella",
    "running shoe", "sports car", "school bus", "mountain bike", "lighthouse", "castle",
    "golden retriever", "tabby cat", "goldfish",
)  # fmt: skip
"""The set ``objects``: plain nouns, most of them ImageNet-1k's own names, for photograph models."""
PLACES = (
    "on a wooden table", "on a beach", "in a garden", "in a bright room", "in the snow",
    "on grass", "on a stone floor", "on a street", "against a plain wall", "at sunset",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One image to be generated, or one picture to be looked at.

    Attributes:
        index: position along the run's ``sample`` dimension.
        category: the class its prompt names, where that is known.
        picture: file name of the picture; None where it is generated.
    """

    index: int
    prompt: str
    seed: int
    category: str | None
    split: str
    picture: str | None = None

    @property
    def group(self) -> str:
        """What it shares with samples that are not independent of it: its prompt, or picture."""
        return self.picture or self.prompt


@dataclass(frozen=True)
class _Draft:
    prompt: str
    seed: int
    category: str | None
    split: str | None
    group: str
    """What goes into one split together: the prompt, or the picture."""
    picture: str | None = None


def pin_inputs(study: Study) -> Study:
    """The study with the number of samples and the digest of the files that hold them.

    From here on its hash stands for the files' contents, wherever they lie.

    Raises:
        UserError: a mistake in the files, or files that have changed since they were pinned.
    """
    if study.images is not None:
        images = study.images.model_copy(
            update={"folder": str(Path(study.images.folder).expanduser().absolute())}
        )
        names = picture_names(images)
        maps_present(images, names)
        digest = _unchanged("images.folder", images.digest, pictures_digest(images, names))
        pinned = images.model_copy(update={"samples": len(names), "digest": digest})
        return study.model_copy(update={"images": pinned})
    prompts = study.prompts
    if prompts.files is None:
        return study
    files = {
        split: str(Path(path).expanduser().absolute()) for split, path in prompts.files.items()
    }
    count = len(read_rows(files))
    if prompts.samples not in (None, count):
        raise UserError(
            f"prompts.samples is {prompts.samples}, and prompts.files hold {count} rows: leave "
            "samples out, or give the files that it was written for"
        )
    digest = _unchanged("prompts.files", prompts.digest, digest_of(files))
    update = {"files": files, "samples": count, "digest": digest}
    return study.model_copy(update={"prompts": prompts.model_copy(update=update)})


def _unchanged(field: str, before: str | None, now: str) -> str:
    if before not in (None, now):
        raise UserError(
            f"{field} has changed since the study was begun (digest {before}, now {now}): put the "
            "files back, or begin a study of the new ones without the digest"
        )
    return now


def make_samples(study: Study) -> list[Sample]:
    """Every sample of a study, in order; the same study always gives the same samples.

    Splits go by prompt: all samples of a prompt are in one split.  Where files name splits, those
    hold; a validation part is taken from the training prompts where they name none.  Where training
    samples leave only statistics, those that are stored come first, in their order.

    Raises:
        UserError: a mistake in the files that hold them, or too few prompts for the splits.
    """
    drafts = _drafts_of_pictures(study.images) if study.images else _drafts(study.prompts)
    split_of = _splits(drafts, study)
    if study.capture.store == "statistics":
        drafts.sort(key=lambda draft: split_of[draft.group] == "train")  # a stable sort
    return [
        Sample(i, d.prompt, d.seed, d.category, split_of[d.group], d.picture)
        for i, d in enumerate(drafts)
    ]


def _drafts_of_pictures(images: Images) -> list[_Draft]:
    return [
        _Draft(images.caption, images.seed + i, None, None, name, name)
        for i, name in enumerate(picture_names(images))
    ]


def _drafts(prompts: Prompts) -> list[_Draft]:
    if prompts.files is not None:
        rows: list[Row] = read_rows(prompts.files)
        return [_Draft(r.prompt, r.seed, r.category, r.split, r.prompt) for r in rows]
    count = prompts.count
    assert count is not None
    named: list[tuple[str, str | None]]
    if prompts.items is not None:
        named = [(prompts.items[i % len(prompts.items)], None) for i in range(count)]
    elif prompts.set == "objects":
        named = list(object_prompts(count, prompts.seed))
    else:
        named = list(tabletop_prompts(count, prompts.seed))
    # Seeds count up over all samples, so that a prompt that returns gets another one each time.
    return [
        _Draft(prompt, prompts.seed + i, category, None, prompt)
        for i, (prompt, category) in enumerate(named)
    ]


def object_prompts(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` (prompt, object) pairs of the set ``objects``, balanced over the objects."""
    rng = np.random.default_rng([count, seed])
    places = {name: rng.permutation(len(PLACES)) for name in OBJECTS}
    pairs = []
    for i in range(count):
        name = OBJECTS[i % len(OBJECTS)]
        place = PLACES[places[name][i // len(OBJECTS) % len(PLACES)]]
        article = "an" if name[0] in "aeiou" else "a"
        pairs.append((f"a photo of {article} {name} {place}", name))
    return pairs


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


def stored_of(samples: list[Sample], study: Study) -> int:
    """How many samples are stored: the first so many."""
    if study.capture.store != "statistics":
        return len(samples)
    return sum(sample.split != "train" for sample in samples)


def _splits(drafts: list[_Draft], study: Study) -> dict[str, str]:
    """Split of every group: as given, the rest dealt out, shuffled; each split gets at least one.

    Raises:
        UserError: the files name splits and leave one empty, or nothing is left to train on.
    """
    split = study.probes.split
    given = {draft.group: draft.split for draft in drafts}
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    found = {group: name for group, name in given.items() if name is not None}
    loose, wanted = sorted(given), list(SPLITS)
    if found and split.held is not None:
        raise UserError(
            f"probes.split.held is {split.held}, and prompts.files name splits, which hold: leave "
            "one of them out"
        )
    if found:  # the files name splits; all that may be missing is one to choose probes with
        unsplit = "validation" not in found.values()
        loose = sorted(g for g, name in found.items() if name == "train") if unsplit else []
        wanted = ["train", "validation"]
    if loose:
        order = np.random.default_rng([len(loose), study.prompts.seed]).permutation(len(loose))
        shuffled = [loose[i] for i in order]
        if split.held is not None:
            held = _held_out(shuffled, Counter(draft.group for draft in drafts), split.held)
            dealt = _deal(held, {name: shares[name] for name in ("validation", "test")})
            names = dealt + ["train"] * (len(shuffled) - held)
        else:
            names = _deal(len(loose), {name: shares[name] for name in wanted})
        found |= dict(zip(shuffled, names, strict=True))
    missing = [name for name in SPLITS if name not in found.values()]
    if missing:
        raise UserError(
            f"prompts.files: no prompt is in the {missing[0]} split: name some for it, or leave "
            "the column split out"
        )
    return found


def _held_out(groups: list[str], sizes: Counter[str], samples: int) -> int:
    """How many of the groups, in order, hold so many samples; at least two, one for each split."""
    held = int(np.searchsorted(np.cumsum([sizes[group] for group in groups]), samples)) + 1
    held = max(held, 2)
    if held >= len(groups):
        raise UserError(
            f"probes.split.held is {samples}, and of {sizes.total()} samples of {len(groups)} "
            "prompts that leaves none to train on: lower it, or raise prompts.samples"
        )
    return held


def _deal(count: int, shares: dict[str, float]) -> list[str]:
    """Names of splits for so many groups, in proportion; every name at least once if it can be."""
    whole, names, left = sum(shares.values()), list(shares), count
    dealt: list[str] = []
    for i, name in enumerate(names):
        after = len(names) - i - 1
        wanted = round(shares[name] / whole * count)
        number = left if after == 0 else min(max(1, wanted), max(left - after, 0))
        dealt += [name] * number
        left -= number
    return dealt
