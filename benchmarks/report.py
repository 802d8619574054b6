"""Time to build a report of the published study's size, and size of its page.

    python benchmarks/report.py [SIDE]

15 steps x 16 layers x 3 properties, about 371 of 617 samples held out, 64 x 64 pixels unless SIDE
says otherwise.  Arrays are filled with random values: what is measured is reading, statistics,
figures and page.  The report is built twice: the second time takes its statistics from the first.
Two processes make it, if there are two CPUs.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.drawing.second_process import second_process
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.storage.probe_schema import RunShape
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import INPUT_CONTROLS, LayerShape
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.study.samples import make_samples

USAGE = {"first": resource.RUSAGE_SELF, "second": resource.RUSAGE_CHILDREN}
"""Whose use of resources counts for the first process of a report, and for its children.

The peak of memory of the children is that of the largest one that has ended.
"""

STEPS, LAYERS, SAMPLES = 15, 16, 617


def regions(data: xr.Dataset) -> list[dict[str, slice]]:
    """Divide a group of arrays along its samples, into complete chunks of all arrays."""
    arrays = [array for array in data.data_vars.values() if array.dtype.kind in "fiu"]
    if any(array.dims[:1] != ("sample",) for array in arrays):
        return [{}]
    size, count = data.sizes["sample"], math.lcm(*(array.encoding["chunks"][0] for array in arrays))
    return [{"sample": slice(i, min(i + count, size))} for i in range(0, size, count)]


def write(place: str, side: int) -> Run:
    """Create a finished run of the published study's size, filled with random values."""
    study = parse_study(
        {
            "name": "large",
            "prompts": {"samples": SAMPLES},
            "probes": {"split": {"train": 0.34, "validation": 0.06, "test": 0.6}},
        }
    )
    shapes = {f"up_blocks.{i}.attn1": LayerShape(8, 8, 8) for i in range(LAYERS)}
    shapes["latents"] = shapes["clean_pixels"] = LayerShape(8, 8, 4)
    shape = RunShape(
        study, make_samples(study), shapes, (side, side), [float(s) for s in range(STEPS)],
        CATEGORIES, dict.fromkeys([*study.labels.maps, "class"], "1"),
    )  # fmt: skip
    run = Run(place)
    run.create(shape, {
        "model_fingerprint": "none", "versions": {},
        "labeler_fingerprints": dict.fromkeys(labelers_of(study), "none"),
    })  # fmt: skip
    rng = np.random.default_rng(0)

    def fill(group: str) -> None:
        data = run.open(group)
        # Fill the chunks of one batch at a time: all images of a large size do not fit into memory.
        for part in regions(data):
            values = {}
            for name, array in data.isel(part).data_vars.items():
                if array.dtype.kind in "fiu":
                    high = 255 if array.dtype == np.uint8 else 1
                    values[str(name)] = (rng.random(array.shape, np.float32) * high).astype(
                        array.dtype
                    )
            run.write(group, values, **part)

    for group in ("labels", "labels_trajectory", "labels_clean", "images", "step_images"):
        fill(group)
    for prop in study.labels.maps:
        fill(f"scores/{prop}")
    for name in shapes:
        for group in (f"activations/{name}", f"probes/{name}"):
            fill(group)
        if name not in INPUT_CONTROLS:
            group = f"activations_permuted/{name}"
            shape = run.open(group).nonfinite.shape
            run.write(group, {"nonfinite": np.zeros(shape, np.int32)})
    marks = run.open("progress")
    run.write("progress", {str(n): np.ones(a.shape, np.uint8) for n, a in marks.data_vars.items()})
    return run


def cpu_seconds() -> float:
    """Sum the CPU seconds of this process and of the second processes that have ended."""
    usage = [resource.getrusage(who) for who in USAGE.values()]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def main() -> None:
    """Print seconds and size of the report as JSON."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with tempfile.TemporaryDirectory() as place:
        run = write(f"{place}/run", side)
        found: dict[str, object] = {"side": side}
        for name in ("first", "again"):
            started, cpu = time.perf_counter(), cpu_seconds()
            with second_process() as second:
                summary = build_report(run, {}, second=second)
            found[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
            found[f"{name}_cpu_seconds"] = round(cpu_seconds() - cpu, 1)
        files = (Path(run.url) / "report").rglob("*")
        found["folder_mb"] = round(sum(p.stat().st_size for p in files if p.is_file()) / 1e6, 2)
        for name, who in USAGE.items():
            found[f"peak_gb_of_{name}"] = round(resource.getrusage(who).ru_maxrss / 1e6, 2)
        found["test_samples"] = summary.samples["test"]
        print(json.dumps(found))


if __name__ == "__main__":
    main()
