"""Extensions that installed packages offer as entry points.

A package declares an extension under the name by which studies refer to it::

    [project.entry-points."ldmprobe.properties"]
    sunlit = "mypackage.labels"
    [project.entry-points."ldmprobe.labelers"]
    "sunlit.bright" = "mypackage.labels:sunlit"
    [project.entry-points."ldmprobe.probe_kinds"]
    lasso = "mypackage.probes"
    [project.entry-points."ldmprobe.architectures"]
    MyPipeline = "mypackage.models"

An entry point is imported when a study names it, and not before.  A labeler is the object that the
entry point names.  Modules of the other groups register their extensions when they are imported.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ldmprobe_core.errors import UserError

PROPERTY_POINTS = "ldmprobe.properties"
PROBE_KIND_POINTS = "ldmprobe.probe_kinds"
ARCHITECTURE_POINTS = "ldmprobe.architectures"


def load_entry_points(group: str, name: str, field: str) -> list[Any]:
    """Import the entry points that installed packages declare under a name.

    Args:
        group: group of entry points, such as ``ldmprobe.labelers``.
        name: name of the extension.
        field: key of a study that names the extension, for messages.

    Returns:
        the objects of the entry points; empty if no installed package offers this name.

    Raises:
        UserError: an entry point cannot be imported.
    """
    loaded = []
    for point in entry_points(group=group, name=name):
        try:
            loaded.append(point.load())
        # The import runs code of the package, which may raise any exception.
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{field}: {name!r} is an entry point of an installed package, and {point.value} "
                f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}). "
                "Fix: repair or uninstall the package that declares this entry point"
            ) from error
    return loaded
