"""Analysis of a finished run, kept in the run's report folder to redraw the report faster.

The statistics of a run take longer than the figures that show them.  They are therefore kept, with
a digest of everything that they were computed from, and are computed again when the digest differs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ldmprobe_core
from ldmprobe_core.analysis.classes.records import PHOTOGRAPHS
from ldmprobe_core.analysis.curves import Curves
from ldmprobe_core.analysis.records import LayerRecord, PeakRecord, Summary
from ldmprobe_core.analysis.run_analysis import RunAnalysis, current_fields, test_bootstrap
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.bookkeeping import CREATED, record_names
from ldmprobe_core.storage.progress import GROUP as PROGRESS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import UNIT_KINDS
from ldmprobe_core.study.probe_kinds import BUILT_IN_KINDS
from ldmprobe_core.study.properties import REGISTERED_METRICS, property_of

if TYPE_CHECKING:
    from ldmprobe_core.analysis.report.drawing.second_process import SecondProcess

KEPT = "report/analysis.npz"
"""File with the summary and the curves of the last report, and the digest of their inputs."""

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")


def analyse(
    run: Run,
    seconds: dict[str, float],
    memory: dict[str, PeakRecord] | None = None,
    second: SecondProcess | None = None,
) -> RunAnalysis:
    """Take a run's analysis from its report folder if it is valid; otherwise compute and keep it.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.
        memory: planned and measured peaks of memory, which the summary reports.
        second: a second process, which computes a part; None computes all in this one.

    Raises:
        RuntimeError: the run is not finished.
    """
    run.progress.require_complete("probed")
    labels = label_set(run)
    digest = inputs_digest(run, labels)
    kept = kept_analysis(run, labels, digest)
    if kept is not None:
        summary = kept.summary.model_copy(update=current_fields(run, seconds, memory))
        return replace(kept, summary=summary)
    if second is not None and second.can_compute(run):
        second.prepare()
    # Import here, because drawing a kept analysis does not need `summarize`, whose libraries take
    # seconds to load.
    from ldmprobe_core.analysis.summarize import summarise

    analysis = summarise(run, seconds, labels, memory, second)
    keep_analysis(run, analysis, digest)
    return analysis


def inputs_digest(run: Run, labels: LabelSet) -> str | None:
    """Compute the digest of everything that the statistics of a finished run depend on.

    These are the run's scores and label maps, the recorded checksums of its other arrays, its study
    and attributes, this package and the libraries that compute.

    Returns:
        64 hexadecimal digits; None if the statistics call functions that were registered from
        outside this package, or if the run has no record of checksums.
    """
    study = run.study
    metrics = {metric for prop in study.labels.maps for metric in property_of(prop).metrics}
    if metrics & REGISTERED_METRICS or not set(study.probes.kinds) <= BUILT_IN_KINDS:
        return None
    if not run.location.has(CREATED):
        return None
    digest = hashlib.sha256(_code_digest())
    for text in (study.to_json(), json.dumps(run.attributes, sort_keys=True, default=str)):
        digest.update(hashlib.sha256(text.encode()).digest())
    for name in _records(run):
        digest.update(name.encode() + hashlib.sha256(run.location.read_bytes(name)).digest())
    arrays = {f"labels/{prop}": maps for prop, maps in labels.maps.items()}
    arrays |= {f"means/{prop}": mean for prop, mean in labels.means.items()}
    arrays |= {f"scores/{prop}": run.read(f"scores/{prop}", "score") for prop in study.labels.maps}
    for name, values in arrays.items():
        shape = f"{name} {values.dtype} {values.shape}"
        content = hashlib.sha256(np.ascontiguousarray(values).data)
        digest.update(shape.encode() + content.digest())
    return digest.hexdigest()


def keep_analysis(run: Run, analysis: RunAnalysis, digest: str | None) -> None:
    """Write the summary and the curves of a run's analysis into its report folder.

    Args:
        run: finished run.
        analysis: its analysis.
        digest: result of `inputs_digest`; None writes nothing.
    """
    if digest is None:
        return
    # Leave out the `current_fields`, so that equal statistics give equal files.
    summary = analysis.summary.model_copy(
        update={"interventions": {}, "seconds": {}, "memory": {}, "bytes": 0, "notes": ()}
    )
    header: dict[str, Any] = {
        "digest": digest,
        "summary": summary.model_dump(mode="json", by_alias=True),
        "curves": {},
    }
    arrays: dict[str, Any] = {}
    for prop, curves in analysis.curves.items():
        names: dict[str, list[str]] = {}
        header["curves"][prop] = {
            "kind": curves.kind,
            "labeled": curves.labeled,
            "layer": curves.layer.model_dump(),
            "names": names,
        }
        for field in fields(curves):
            value = getattr(curves, field.name)
            if isinstance(value, dict):
                names[field.name] = list(value)
                arrays |= {f"{prop}/{field.name}/{name}": one for name, one in value.items()}
            elif isinstance(value, np.ndarray):
                arrays[f"{prop}/{field.name}"] = value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
    run.location.write_bytes(KEPT, buffer.getvalue())


def kept_analysis(run: Run, labels: LabelSet, digest: str | None) -> RunAnalysis | None:
    """Read the analysis that `keep_analysis` wrote, without the values of `current_fields`.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        digest: result of `inputs_digest`.

    Returns:
        the analysis; None if there is none with this digest, or its file is damaged.
    """
    if digest is None or not run.location.has(KEPT):
        return None
    try:
        with np.load(io.BytesIO(run.location.read_bytes(KEPT)), allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["digest"] != digest:
                return None
            summary = Summary.model_validate(header["summary"])
            curves = {prop: _curves(prop, kept, arrays) for prop, kept in header["curves"].items()}
    except Exception:  # A damaged file raises errors of zipfile, zlib, NumPy, json or pydantic.
        return None
    bootstrap, is_test = test_bootstrap(run, labels)
    return RunAnalysis(summary, curves, bootstrap, labels.heldout[is_test], labels)


def _curves(prop: str, kept: dict[str, Any], arrays: Any) -> Curves:
    """Read the curves of a property from the arrays of a kept analysis."""
    values: dict[str, Any] = {
        "kind": kept["kind"],
        "labeled": kept["labeled"],
        "layer": LayerRecord(**kept["layer"]),
    }
    for field in fields(Curves):
        if field.name in kept["names"]:
            values[field.name] = {
                name: arrays[f"{prop}/{field.name}/{name}"] for name in kept["names"][field.name]
            }
        elif f"{prop}/{field.name}" in arrays:
            values[field.name] = arrays[f"{prop}/{field.name}"]
    return Curves(**values)


def _records(run: Run) -> Iterator[str]:
    """Yield the names of the files that a run's statistics depend on, in a fixed order."""
    yield CREATED
    for kind in UNIT_KINDS.values():
        if not kind.per_group:
            yield from sorted(record_names(run.location, f"{PROGRESS}/{kind.progress}"))
    if run.location.has(PHOTOGRAPHS):
        yield PHOTOGRAPHS


@cache
def _code_digest() -> bytes:
    """Compute the digest of this package's code, except reports, and of library versions."""
    digest = hashlib.sha256()
    root = Path(ldmprobe_core.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("analysis/report/"):
            digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    return digest.digest()
