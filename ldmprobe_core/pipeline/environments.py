"""Record of the package versions and devices with which a run's units of work were computed.

A run takes days, during which a package may be upgraded, or a worker may have other packages than
the flow.  Results of a mixture are no error, since most upgrades change no bit of them, but they
should not be taken for those of one version.  Each combination is a small file in the run's folder
``environments/``, which any process may write.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from ldmprobe_core.errors import LdmprobeError
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.metadata_cache import cached_fact

ENVIRONMENTS = "environments"
"""Folder of a run with a file for each combination of a kind of unit, versions and device."""

_RECORDED = ("ldmprobe", "torch", "diffusers", "transformers", "numpy", "zarr", "xarray", "prefect")
COMPUTING = ("ldmprobe", "torch", "diffusers", "transformers", "numpy")
"""Packages whose versions may change results."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results, by name."""
    packages = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return packages


def record_environment(run: Run, verb: str) -> None:
    """Record that this process computes units of a kind, unless the run has the same record.

    Each process writes only once for a run and a device, since its packages do not change.  A
    worker may live on while the run is created again, or resumed with another device.

    Args:
        run: the run.
        verb: kind of the units, such as ``generate``.
    """
    # This import loads torch, which reports do not need.
    from ldmprobe_core.models.devices import pick_device

    device = pick_device(run.study.execution.wanted_device).type
    identity = run.location.read_text("identity")
    fact = f"environment of {verb} on {device} in {identity}"
    cached_fact(run.url, fact, lambda: _write_record(run, verb, device))


def _write_record(run: Run, verb: str, device: str) -> str:
    """Write the record of this process, and return the name of its file."""
    record = {"unit": verb, "device": device, "versions": versions()}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    name = f"{ENVIRONMENTS}/{verb}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not run.location.has(name):
        run.location.write_text(name, text)
    return name


def environment_notes(run: Run) -> tuple[str, ...]:
    """Describe the versions and devices of a run if there are several of one package or stage.

    Returns:
        one sentence; none if a single version of each package, and a single device for each kind of
        unit, took part.  Runs of early versions have a record of their creation alone.
    """
    made = run.attributes.get("versions", {})
    found = {name: {_public(made[name])} for name in COMPUTING if name in made}
    for record in _records(run):
        for name in COMPUTING:
            found.setdefault(name, set()).add(_public(record["versions"][name]))
        found.setdefault(f"device of {record['unit']}", set()).add(record["device"])
    several = [
        f"{name} ({', '.join(sorted(values))})" for name, values in found.items() if len(values) > 1
    ]
    if not several:
        return ()
    return (
        "the run was created and computed with several versions or devices, which may change "
        f"results: {', '.join(several)}",
    )


def change_notes(run: Run) -> tuple[str, ...]:
    """Describe which computing packages of this process differ from those of an unfinished run.

    Returns:
        one sentence; none if all versions have taken part in the run already.
    """
    known = [run.attributes.get("versions", {}), *(one["versions"] for one in _records(run))]
    changed = []
    for name, here in versions().items():
        before = {_public(one[name]) for one in known if name in one}
        if name in COMPUTING and before and _public(here) not in before:
            changed.append(f"{name} {here} instead of {', '.join(sorted(before))}")
    if not changed:
        return ()
    return (
        f"{run.url} continues with {'; '.join(changed)}, which may change results. To keep a "
        "single version, stop, and install the former one or choose another store",
    )


def _records(run: Run) -> list[dict[str, Any]]:
    """Read the records of a run's environments; damaged ones are left out."""
    records = []
    for name in run.location.files(ENVIRONMENTS):
        try:
            record = json.loads(run.location.read_bytes(f"{ENVIRONMENTS}/{name}"))
            records.append(
                {
                    "unit": str(record["unit"]),
                    "device": str(record["device"]),
                    "versions": {one: str(record["versions"][one]) for one in COMPUTING},
                }
            )
        except (LdmprobeError, OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return records


def _public(version: str) -> str:
    """Return a version without its local label, which names a build, such as ``+cpu``."""
    return version.partition("+")[0]
