"""Checks of the properties that a study declares, beyond the types of their fields."""

from __future__ import annotations

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.schema import Study


def check_declarations(study: Study) -> None:
    """Check that the colour maps that a study names for its properties exist in Matplotlib.

    Raises:
        UserError: matplotlib has no colour map of a name.
    """
    if not study.properties:
        return
    from matplotlib import colormaps

    for name, record in study.properties.items():
        if record.drawing.colormap not in colormaps:
            raise UserError(
                f"properties.{name}.drawing.colormap: matplotlib has no such colour map "
                f"({record.drawing.colormap!r:.60}). Fix: choose another, such as viridis or gray"
            )
