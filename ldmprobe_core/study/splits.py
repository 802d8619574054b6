"""Assignment of prompts to the splits train, validation and test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


@dataclass(frozen=True)
class SampleDraft:
    """One image before its split is known; see `Sample`."""

    prompt: str
    seed: int
    category: str | None
    split: str | None
    group: str
    """What goes into one split together: the prompt, or the picture."""
    source_image: str | None = None
    origin: str = ""


def assign_splits(drafts: list[SampleDraft], study: Study) -> dict[str, str]:
    """Split of every group: as given, the rest dealt out, shuffled; each split gets at least one.

    Raises:
        UserError: the files name splits and leave one empty, or nothing is left to train on.
    """
    split = study.probes.split
    given = {draft.group: draft.split for draft in drafts}
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    found = {group: name for group, name in given.items() if name is not None}
    loose, wanted = sorted(given), list(SPLITS)
    if found and split.heldout is not None:
        raise UserError(
            f"probes.split.heldout is {split.heldout}, and prompts.files name splits, which hold: "
            "leave "
            "one of them out"
        )
    if found:  # the files name splits; all that may be missing is one to choose probes with
        unsplit = "validation" not in found.values()
        loose = sorted(g for g, name in found.items() if name == "train") if unsplit else []
        wanted = ["train", "validation"]
    if loose:
        order = np.random.default_rng([len(loose), study.prompts.seed]).permutation(len(loose))
        shuffled = [loose[i] for i in order]
        if split.heldout is not None:
            held = _n_heldout_groups(
                shuffled, Counter(draft.group for draft in drafts), split.heldout
            )
            dealt = _apportion(held, {name: shares[name] for name in ("validation", "test")})
            names = dealt + ["train"] * (len(shuffled) - held)
        else:
            names = _apportion(len(loose), {name: shares[name] for name in wanted})
        found |= dict(zip(shuffled, names, strict=True))
    missing = [name for name in SPLITS if name not in found.values()]
    if missing:
        raise UserError(
            f"prompts.files: no prompt is in the {missing[0]} split: name some for it, or leave "
            "the column split out"
        )
    return found


def _n_heldout_groups(groups: list[str], sizes: Counter[str], samples: int) -> int:
    """Number of groups, in order, that hold at least this number of samples; at least two."""
    held = int(np.searchsorted(np.cumsum([sizes[group] for group in groups]), samples)) + 1
    held = max(held, 2)
    if held >= len(groups):
        raise UserError(
            f"probes.split.heldout is {samples}, and of {sizes.total()} samples of {len(groups)} "
            "prompts that leaves none to train on: lower it, or raise prompts.samples"
        )
    return held


def _apportion(count: int, shares: dict[str, float]) -> list[str]:
    """Split names for a number of groups, in proportion; each name at least once if possible."""
    whole, names, left = sum(shares.values()), list(shares), count
    dealt: list[str] = []
    for i, name in enumerate(names):
        after = len(names) - i - 1
        wanted = round(shares[name] / whole * count)
        number = left if after == 0 else min(max(1, wanted), max(left - after, 0))
        dealt += [name] * number
        left -= number
    return dealt


SPLITS = ("train", "validation", "test")
