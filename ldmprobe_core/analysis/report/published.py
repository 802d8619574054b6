"""Published results, which a report shows next to the results of its run."""

from __future__ import annotations

from typing import NamedTuple

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


def applies(study: Study) -> bool:
    """Return whether a study probes Stable Diffusion 1.4, as the published results do."""
    return "stable-diffusion-v1-4" in str(study.model.source)
