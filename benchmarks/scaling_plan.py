"""Estimate of a study's bytes, objects, requests, hours and cost, without running it.

    python benchmarks/scaling_plan.py [study] [images] [seconds an image] [GPUs]

The run is laid out in memory and its chunks are counted: each is one object, written by one PUT and
read by the stage after.  Seconds an image are of one GPU, for generating with both variants and for
labeling: measure them with a small run of your own (docs/scaling.md).  Prices are list prices of S3
in us-east-1 (storage 0.023 $/GB and month, PUT 0.005 $ and GET 0.0004 $ for each thousand), and
1.20 $/h for a spot A100, as of November 2026; change them here.
"""

from __future__ import annotations

import sys

import zarr
from zarr.storage import MemoryStore

from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.storage.probe_schema import RunShape
from ldmprobe_core.storage.schema import RunSchema
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.samples import make_samples

STORAGE, PUT, GET, GPU_HOUR = 0.023, 0.005 / 1000, 0.0004 / 1000, 1.20

COUNTED = (600, 1000)
"""Numbers of images for which chunks are counted, to extend them to more."""


def chunks(name: str, images: int) -> dict[str, int]:
    """Count the chunks of each group of a run with a number of images."""
    overrides = ["prompts.files=null", "prompts.set=objects", f"prompts.samples={images}"]
    study = load_study(name, overrides)
    plan = plan_study(study)
    units = dict.fromkeys(study.labels.maps, "1")
    shape = RunShape(
        study,
        make_samples(study),
        plan.shapes,
        plan.size,
        plan.steps,
        (),
        units,
        plan.exact_properties,
    )
    root = zarr.create_group(MemoryStore())
    RunSchema(root, shape).build()
    found: dict[str, int] = {}
    for path, member in root.members(None):
        if isinstance(member, zarr.Array):
            group = path.partition("/")[0]
            found[group] = found.get(group, 0) + member.nchunks
    found["bytes"] = plan.bytes
    found["cells"] = plan.cells
    found["batches"] = len(study.batches(plan.n_stored))
    return found


def counts(name: str, images: int) -> dict[str, int]:
    """Count the chunks of each group, or extend two smaller counts along a straight line.

    The samples with step images and with the untrained denoiser are as many in both of these, so
    that only what grows with the number of images is extended.
    """
    few, many = COUNTED
    if images <= many:
        return chunks(name, images)
    small, large = chunks(name, few), chunks(name, many)
    return {
        group: count + round((count - small[group]) * (images - many) / (many - few))
        for group, count in large.items()
    }


def main(name: str, images: int, seconds: float, gpus: int) -> None:
    """Print the estimate."""
    part = counts(name, images)
    by_batch = (
        "images",
        "step_images",
        "activations",
        "activations_permuted",
        "labels",
        "labels_trajectory",
        "labels_clean",
    )
    puts = sum(part.get(group, 0) for group in by_batch) + part["probes"] + part["scores"]
    # Probing reads each chunk of activations once, and labeling reads all images.
    gets = part["activations"] + part.get("activations_permuted", 0)
    gets += part["images"] + part["step_images"]
    total = part["bytes"]
    hours = images * seconds / 3600 / gpus
    print(f"{name}: {images} images, {part['cells']} cells, {part['batches']} batches")
    print(f"bytes              {total / 1e9:,.0f} GB")
    print(f"objects, PUTs      {puts:,.0f}")
    print(f"GETs               {gets:,.0f}")
    print(f"hours              {hours:,.1f} on {gpus} GPUs at {seconds} s an image")
    print(f"GPUs               {hours * gpus * GPU_HOUR:,.0f} $")
    print(f"requests           {puts * PUT + gets * GET:,.2f} $")
    print(f"storage            {total / 1e9 * STORAGE:,.0f} $ a month")


if __name__ == "__main__":
    words = sys.argv[1:] + ["paper", "617", "6", "1"][len(sys.argv) - 1 :]
    main(words[0], int(words[1]), float(words[2]), int(words[3]))
