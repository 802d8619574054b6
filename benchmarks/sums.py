"""Disk and memory that a run with statistics instead of activations takes, by samples.

    python benchmarks/sums.py [samples ...]

The embedded model at two steps without guidance or controls, so that thousands of images are soon
made; 32 samples held out.  The last lines project Stable Diffusion 1.4 from its configs alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from benchmarks.capture import peak_beyond
from benchmarks.figures import Figure, exponent, plain_study, report, without_controls
from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.statistics import run_accumulation_units
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.schema import Study

SIZES = (256, 1024, 4096)
HELD = 32


def study_of(samples: int) -> Study:
    """Build a small study that keeps statistics only."""
    changes = {
        "sampling.guidance": "1.0",
        "sampling.batch": "64",
        "capture.keep": "statistics",
        "probes.kinds": "[ridge]",
        "probes.split.heldout": str(HELD),
    }
    return without_controls(plain_study(samples, 2, **changes))


def one(samples: int) -> dict[str, float]:
    """Return the bytes of a run on disk, and the peak memory while its statistics are summed."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(study_of(samples), folder)
        for batch in range(len(run.study.batches(run.n_stored))):
            generate_batch(run.url, batch)
            label_batch(run.url, batch)

        units = [
            (p, i) for p, part in enumerate(run_accumulation_units(run)) for i in range(len(part))
        ]
        accumulate_unit(run.url, *units[0])  # not measured: loads the models

        def tally() -> None:
            for unit in units:
                accumulate_unit(run.url, *unit)

        return {"memory": peak_beyond(tally), "disk": run.location.size()}


def in_a_process(samples: int) -> dict[str, float]:
    """Call `one` in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sums", "--one", str(samples)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(sizes: tuple[int, ...] = SIZES) -> list[Figure]:
    """Measure runs of several numbers of samples, and compare their sizes."""
    found = {samples: in_a_process(samples) for samples in sizes}
    ends = f"{sizes[0]} to {sizes[-1]:,} samples"
    figures = []
    for kind, limit in (("disk", 0.05), ("memory", 0.1)):
        values = [found[samples][kind] for samples in sizes]
        text = ", ".join(f"{value / 1e6:.0f}" for value in values)
        grows = exponent(list(sizes), values)
        figures.append(
            Figure("statistics", f"growth of {kind} with samples, exponent", grows, "",
                   at_most=limit, note=f"{ends}: {text} MB")
        )  # fmt: skip
    return figures + projected()


def projected() -> list[Figure]:
    """Estimate sizes for Stable Diffusion 1.4 (16 layers, 15 steps), as `ldmprobe check` does."""
    paper = load_study(
        "paper", ["prompts.files=null", "prompts.set=objects", "prompts.samples=617"]
    )
    stored = plan_study(without_controls(paper)).bytes_of["activations"]
    content = without_controls(paper).model_dump(mode="json", by_alias=True)
    content["capture"] |= {"keep": "statistics", "accumulators": 1}
    content["probes"] = {"kinds": ["ridge"]}
    sums = plan_study(parse_study(content)).bytes_of["statistics"]
    return [
        Figure("statistics", "SD 1.4, 617 images: activations stored", stored / 1e9, "GB"),
        Figure("statistics", "SD 1.4, any number of images: sums, an accumulator", sums / 1e9, "GB",
               note="both buffers; each worker that shares the work has an accumulator"),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(int(sys.argv[2]))))
    else:
        report(measure(tuple(int(word) for word in sys.argv[1:]) or SIZES))
