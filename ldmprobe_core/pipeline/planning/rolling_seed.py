"""Rolling seed of a scheduled study, which gives each day its own range of seeds."""

from __future__ import annotations

from datetime import date

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.samples import resolve_inputs
from ldmprobe_core.study.schema import Study

SEEDS_A_DAY = 100_000
"""Number of seeds of one day.

PyTorch's generator on the CPU uses the last 32 bits of a seed.  With this number, the seeds of all
days up to 2087-08-03 are below 2**32, so that no two of these days share the noise of an image.
"""

_FIRST_DAY = date(1970, 1, 1)


def with_rolling_seed(study: Study, day: date) -> Study:
    """Return the study of one day of a schedule, with seeds that no other day uses.

    ``prompts.seed`` is raised by `SEEDS_A_DAY` times the number of days since 1970-01-01, and so is
    ``images.seed`` of a study of source images.  The same day always gives the same study.

    Args:
        study: study of the schedule, with the seeds to which those of the day are added.
        day: date, from 1970-01-01.

    Returns:
        the study of the day; its run has a name of its own, because seeds are part of the hash.

    Raises:
        UserError: the study's own seed and its number of images do not fit into the seeds of a
            day, or its prompts come from files, which give the seed of every image.
    """
    if study.images is None and study.prompts.files is not None:
        raise UserError(
            f"prompts.files: the files give every image its seed ({_paths(study)}), so that each "
            "day would generate the same images. Fix: name the prompts in prompts.items or "
            "prompts.set, or leave out schedule"
        )
    if day < _FIRST_DAY:
        raise UserError(
            f"schedule: the date is too early for a rolling seed ({day}). Fix: use a date from "
            f"{_FIRST_DAY} on"
        )
    if study.count is None:
        study = resolve_inputs(study)
    first = (day - _FIRST_DAY).days * SEEDS_A_DAY
    sections = {"prompts": study.prompts} | ({"images": study.images} if study.images else {})
    for name, section in sections.items():
        if section.seed + (study.count or 1) > SEEDS_A_DAY:
            raise UserError(
                f"{name}.seed: with {study.count} images it reaches beyond the {SEEDS_A_DAY} seeds "
                f"of a day ({section.seed}). Fix: set {name}.seed to 0, or use fewer images"
            )
    return study.model_copy(
        update={
            name: section.model_copy(update={"seed": first + section.seed})
            for name, section in sections.items()
        }
    )


def _paths(study: Study) -> str:
    return ", ".join((study.prompts.files or {}).values())
