"""Public Python API of ldmprobe: ``import ldmprobe as lp``.

Each name is imported from its module when it is first used.  ``import ldmprobe`` therefore takes
milliseconds, and a program that only opens runs imports zarr and xarray but not torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmprobe._arrays import capture, fit_probe, load_labeler
    from ldmprobe._run import Run
    from ldmprobe._runs import (
        compare,
        intervene,
        load_study,
        open_run,
        plan,
        run_study,
        write_report,
    )
    from ldmprobe_core.errors import RunError, UserError
    from ldmprobe_core.labelers.registry import property, register_labeler
    from ldmprobe_core.models.architectures.registry import register_architecture
    from ldmprobe_core.probing import metrics, readouts
    from ldmprobe_core.probing.linear import LinearProbe
    from ldmprobe_core.probing.statistics import SufficientStatistics
    from ldmprobe_core.study.properties import Property, register_property
    from ldmprobe_core.study.schema import Study

__all__ = [
    "LinearProbe", "Property", "Run", "RunError", "Study", "SufficientStatistics", "UserError",
    "capture", "compare", "fit_probe", "intervene", "load_labeler", "load_study", "metrics",
    "open_run", "plan", "property", "readouts", "register_architecture", "register_labeler",
    "register_property", "run_study", "write_report",
]  # fmt: skip

_HOMES = {
    "capture": "ldmprobe._arrays",
    "fit_probe": "ldmprobe._arrays",
    "load_labeler": "ldmprobe._arrays",
    "Run": "ldmprobe._run",
    "compare": "ldmprobe._runs",
    "intervene": "ldmprobe._runs",
    "load_study": "ldmprobe._runs",
    "open_run": "ldmprobe._runs",
    "plan": "ldmprobe._runs",
    "run_study": "ldmprobe._runs",
    "write_report": "ldmprobe._runs",
    "RunError": "ldmprobe_core.errors",
    "UserError": "ldmprobe_core.errors",
    "property": "ldmprobe_core.labelers.registry",
    "register_labeler": "ldmprobe_core.labelers.registry",
    "register_architecture": "ldmprobe_core.models.architectures.registry",
    "LinearProbe": "ldmprobe_core.probing.linear",
    "SufficientStatistics": "ldmprobe_core.probing.statistics",
    "Property": "ldmprobe_core.study.properties",
    "register_property": "ldmprobe_core.study.properties",
    "Study": "ldmprobe_core.study.schema",
}


def __getattr__(name: str) -> Any:
    if name in ("metrics", "readouts"):
        value: Any = import_module(f"ldmprobe_core.probing.{name}")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'ldmprobe' has no attribute {name!r}")
    # Python calls this function only for names that the module does not have.  Store the value as a
    # module attribute, so that later look-ups of the name are fast.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
