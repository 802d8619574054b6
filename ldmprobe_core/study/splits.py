"""Assignment of prompts to the splits train, validation and test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


@dataclass(frozen=True)
class SampleDraft:
    """Sample without a split; the fields have the same meaning as in `Sample`."""

    prompt: str
    seed: int
    category: str | None
    split: str | None
    group: str
    """Prompt or source image; all samples of a group are assigned to the same split."""
    source_image: str | None = None
    origin: str = ""
    source_digest: str | None = None


def assign_splits(drafts: list[SampleDraft], study: Study) -> dict[str, str]:
    """Assign a split to every prompt or source image, from prompt files or at random.

    Returns:
        split by group; every split has at least one group.

    Raises:
        UserError: no group is in one of the splits, or no group remains to train on.
    """
    split = study.probes.split
    given = {draft.group: draft.split for draft in drafts}
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    assigned = {group: name for group, name in given.items() if name is not None}
    loose, names_to_draw = sorted(given), list(SPLITS)
    if assigned and split.heldout is not None:
        raise UserError(
            f"probes.split.heldout is {split.heldout}, but prompts.files name splits. Fix: leave "
            "out probes.split.heldout, or the splits in the files"
        )
    # Prompt files that assign splits need not assign validation.  If no prompt is assigned to it,
    # validation prompts are drawn at random from the training prompts.
    if assigned:
        unsplit = "validation" not in assigned.values()
        loose = sorted(g for g, name in assigned.items() if name == "train") if unsplit else []
        names_to_draw = ["train", "validation"]
    if loose:
        order = np.random.default_rng([len(loose), study.prompts.seed]).permutation(len(loose))
        shuffled = [loose[i] for i in order]
        if split.heldout is not None:
            n_heldout = _n_heldout_groups(
                shuffled, Counter(draft.group for draft in drafts), split.heldout
            )
            heldout = _apportion(n_heldout, {n: shares[n] for n in ("validation", "test")})
            names = heldout + ["train"] * (len(shuffled) - n_heldout)
        else:
            names = _apportion(len(loose), {name: shares[name] for name in names_to_draw})
        assigned |= dict(zip(shuffled, names, strict=True))
    missing = [name for name in SPLITS if name not in assigned.values()]
    if missing:
        raise UserError(
            f"prompts.files: no prompt is in the {missing[0]} split. Fix: assign some prompts to "
            "it, or remove the column named split"
        )
    return assigned


def _n_heldout_groups(groups: list[str], sizes: Counter[str], samples: int) -> int:
    """Return how many of the first groups are needed to hold ``samples`` samples, at least 2."""
    count = int(np.searchsorted(np.cumsum([sizes[group] for group in groups]), samples)) + 1
    count = max(count, 2)
    if count >= len(groups):
        raise UserError(
            f"probes.split.heldout is {samples}, but then no prompt remains for training, since "
            f"the {len(groups)} prompts have {sizes.total()} samples in all. Fix: lower "
            "probes.split.heldout, or raise prompts.samples"
        )
    return count


def _apportion(count: int, shares: dict[str, float]) -> list[str]:
    """Return ``count`` split names in proportion to their shares, each name at least once."""
    total, names, remaining = sum(shares.values()), list(shares), count
    apportioned: list[str] = []
    for i, name in enumerate(names):
        after = len(names) - i - 1
        target = round(shares[name] / total * count)
        number = remaining if after == 0 else min(max(1, target), max(remaining - after, 0))
        apportioned += [name] * number
        remaining -= number
    return apportioned


SPLITS = ("train", "validation", "test")
