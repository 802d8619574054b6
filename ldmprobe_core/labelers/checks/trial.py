"""Trial calls of the user's labelers, on one image, before anything costly is computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.labelers.checks.results import CheckedLabeler
from ldmprobe_core.labelers.functions import ComponentLabeler
from ldmprobe_core.labelers.registry import find_labeler, labelers_of, load_labeler
from ldmprobe_core.study.schema import Study


def trial_problems(
    labelers: Mapping[str, Labeler], size: tuple[int, int], elsewhere: bool
) -> tuple[str, ...]:
    """Call each labeler that is not part of this package once, on an image of noise.

    Exceptions, types, shapes and the range of masks matter.  Values do not: a labeler may find
    nothing in noise, and leave its labels undefined.

    Args:
        labelers: labelers by property, as `load_labeler` loads them.
        size: height and width of the image in pixels.
        elsewhere: whether other machines label the images.  They may have what this one lacks, such
            as a GPU, so no labeler is called here.

    Returns:
        one message for each labeler that raises an exception, does not return numbers in the
        shape of its labels, or tells fewer than two classes apart.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    problems, tried = [], set()
    for labeler in labelers.values():
        # The components of a vector or class map share one labeler.
        whole = labeler.joint.labeler if isinstance(labeler, ComponentLabeler) else labeler
        if not isinstance(whole, CheckedLabeler) or whole in tried:
            continue
        tried.add(whole)
        try:
            whole.require_classes()
            if whole.is_own and not elsewhere:
                whole.try_on(image.copy())
        except (UserError, RunError) as error:
            problems.append(str(error))
    return tuple(problems)


def function_problems(
    study: Study, fingerprints: Mapping[str, str | None], size: tuple[int, int]
) -> tuple[str, ...]:
    """Try those of a study's labelers that are functions of images, and have no weights to load.

    Args:
        study: the study.
        fingerprints: fingerprint of each labeler by property; a labeler without one is missing on
            this machine, and is not tried.
        size: height and width of the study's images in pixels.

    Returns:
        messages, as of `trial_problems`.
    """
    labelers, problems = {}, []
    for prop, spec in labelers_of(study).items():
        if fingerprints.get(prop) is None or not find_labeler(prop, spec.name).is_function:
            continue
        try:
            labelers[prop] = load_labeler(prop, spec, torch.device("cpu"))
        except (UserError, RunError) as error:
            problems.append(str(error))
    return (*problems, *trial_problems(labelers, size, study.execution.elsewhere))
