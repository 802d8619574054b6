"""Checks of a study's declared colour maps, and of its properties with one number per image."""

from __future__ import annotations

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


def check_declarations(study: Study) -> None:
    """Check that colour maps exist, and that probes of per-image numbers have activations.

    Raises:
        UserError: matplotlib has no colour map of a name, or a number is to be probed from a run
            without activations of training samples.
    """
    if study.labels.numbers and study.capture.keep == "statistics":
        raise UserError(
            f"labels.{study.labels.numbers[0]}: a number per image is probed from stored "
            f"activations, but capture.keep is {study.capture.keep}, which stores none of training "
            "samples. Fix: set capture.keep to activations, or the labeler to null"
        )
    if not study.properties:
        return
    from matplotlib import colormaps

    for name, record in study.properties.items():
        if record.drawing.colormap not in colormaps:
            raise UserError(
                f"properties.{name}.drawing.colormap: matplotlib has no such colour map "
                f"({record.drawing.colormap!r:.60}). Fix: choose another, such as viridis or gray"
            )
