"""Published results, which a report shows next to the results of its run."""

from __future__ import annotations

from typing import NamedTuple

from ldmprobe_core.study.layers import VAE
from ldmprobe_core.study.schema import Study


class Published(NamedTuple):
    """Published value of one measured quantity, shown beside the run's own value.

    Attributes:
        quantity: description of the measured quantity.
        value: published value, as text.
        source: citation of the publication.
    """

    quantity: str
    value: str
    source: str


PAPER = "Chen, Viégas & Wattenberg 2023, arXiv 2306.05720"
POSTER = "capstone poster after the paper (Stable Diffusion 1.4, 617 images)"

SCORES = {
    "foreground": Published("Dice, last step", "0.85", POSTER),
    "depth": Published("rank correlation, last step", "0.71", POSTER),
    "shading": Published("rank correlation, last step", "0.62", POSTER),
}
"""Published scores of the best layer at the last step, by property."""

STEPS = (
    Published("properties emerge in the probes", "step 3 of 15", POSTER),
    Published(
        "MiDaS, TRACER and Intrinsic first work on the step's image", "step 10 of 15", POSTER
    ),
    Published("probes stop improving", "after step 5 of 15", PAPER),
    Published("VGG-16 names the object", "step 11 of 15", POSTER),
)


_LABELERS = {"foreground": "tracer", "depth": "midas", "shading": "intrinsic"}
_DEPTH_WEIGHTS = "dpt-large"
"""Name of the published network for depth, which the labeler ``midas`` takes by default."""
_STEPS = 15
_THRESHOLD = 1 / 255
"""Saliency above which a pixel is foreground in the published masks, ``uint8(255 * s) > 0``."""


def applies(study: Study) -> bool:
    """Return whether a study probes Stable Diffusion 1.4 in 15 steps, as the published ones do.

    The published probes are of images that the model makes, and of layers of its denoiser.
    """
    in_vae = any(name == "vae" or name.startswith(VAE) for name in study.capture.layers)
    return (
        _last_part(study.model.source) == "stable-diffusion-v1-4"
        and study.sampling.steps == _STEPS
        and study.images is None
        and not in_vae
    )


def score_of(study: Study, prop: str) -> Published | None:
    """Return the published score of a property; None if the study's labels are of another kind.

    Scores of probes of other labels, such as another network's depth, are not comparable.
    """
    labeler = study.labels.labeler(prop)
    if labeler is None or labeler.name != _LABELERS.get(prop):
        return None
    if prop == "foreground" and study.labels.threshold > _THRESHOLD:
        return None
    if prop == "depth" and _last_part(labeler.weights or _DEPTH_WEIGHTS) != _DEPTH_WEIGHTS:
        return None
    return SCORES[prop]


def _last_part(source: str) -> str:
    """Return the last part of a path or hub id."""
    return source.rstrip("/").rpartition("/")[2]
