"""Checks of the arguments of `ldmprobe.capture`, and the study that it samples with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.loading import sentence
from ldmprobe_core.study.readers.value_types import MAX_SEED, Section
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Capture, Sampling

Checked = TypeVar("Checked", bound=Section)


def checked_inputs(
    prompts: Sequence[str], seeds: Sequence[int] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the prompts and seeds of the images to generate, after checking them.

    Args:
        prompts: prompt of each image.
        seeds: seed of each image; None stands for the numbers from 0 on.

    Raises:
        UserError: they are not lists of text and of whole numbers of the same length, or are empty.
    """
    if not isinstance(prompts, (Sequence, np.ndarray)) or isinstance(prompts, (str, bytes)):
        raise UserError(
            f"prompts: {prompts!r:.60} is not a list. Fix: give a list of prompts, such as "
            "['a red car on a gray floor']"
        )
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UserError(f"prompts: {prompt!r:.60} is not text. Fix: give text for each image")
    chosen = range(len(prompts)) if seeds is None else seeds
    if not isinstance(chosen, (Sequence, np.ndarray)) or isinstance(chosen, str):
        raise UserError(f"seeds: {seeds!r:.60} is not a list. Fix: give a list of whole numbers")
    if not len(prompts) or len(chosen) != len(prompts):
        raise UserError(
            f"seeds: the number of seeds is {len(chosen)} for {len(prompts)} prompts. Fix: "
            "give one seed for each prompt, and at least one prompt"
        )
    for seed in chosen:
        is_whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        if not is_whole or not 0 <= seed <= MAX_SEED:
            raise UserError(
                f"seeds: {seed!r:.60} is no seed. Fix: give whole numbers from 0 to {MAX_SEED}"
            )
    return tuple(map(str, prompts)), [int(seed) for seed in chosen]


def capture_study(
    prompts: tuple[str, ...],
    layers: str | Sequence[str],
    steps: int,
    guidance: float,
    negative: str | None,
) -> Study:
    """Build a study without controls from the arguments of `ldmprobe.capture`.

    The function copies the default study instead of parsing a new one, because parsing refuses
    studies with too few prompts for a training, a validation and a test set.

    Raises:
        UserError: an argument is of another type or out of its range, or a negative prompt is given
            without guidance.
    """
    default = Study()
    sampling = _checked(
        Sampling, {"steps": _plain(steps), "guidance": _plain(guidance), "batch": len(prompts)}
    )
    capture = _checked(Capture, {"layers": [layers] if isinstance(layers, str) else layers})
    if not isinstance(negative, str | None):
        raise UserError(f"negative: {negative!r:.60} is not text. Fix: give one text, or None")
    if negative is not None and sampling.guidance == 1:
        raise UserError(
            f"negative: it has no effect without guidance ({negative!r:.60}). Fix: leave it out, "
            "or give a guidance above 1"
        )
    return default.model_copy(
        update={
            "prompts": default.prompts.model_copy(update={"items": prompts, "negative": negative}),
            "sampling": sampling.model_copy(update={"threads": torch.get_num_threads()}),
            "capture": capture,
            "controls": default.controls.model_copy(
                update={"permuted_weights": None, "latents": False}
            ),
        }
    )


def _checked(section: type[Checked], content: dict[str, Any]) -> Checked:
    """Build a section of a study; the message of the error names the argument."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise UserError(sentence(error, section, "capture")) from None


def _plain(value: Any) -> Any:
    """Convert a number of NumPy to one of Python."""
    return value.item() if isinstance(value, np.generic) else value
