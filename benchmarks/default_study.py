"""The whole default study against plain generation of the same images, in CPU seconds.

    python -m benchmarks.default_study [images]

One process with one thread does both sides batch by batch, in turn: the unmodified diffusers
pipeline up to finished images, and everything that the study does with the same prompts and seeds
(generation with capture, the permuted twin, step images and writing; labels; probes with all
controls; summary and report).  CPU seconds of the process are compared, so that other work on the
machine changes the ratio little.  Prefect's share is left out (`benchmarks.prefect_share`), and
so is loading the model, which both sides do.  With fewer images than the study has, the samples
with step images and those of the permuted twin are fewer in the same proportion.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.figures import Figure, report
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import load_study


def plain_batch(run: Run, batch: int) -> None:
    """Generate the images of one batch with the pipeline alone."""
    study = run.study
    members = study.batches(run.n_stored)[batch]
    samples = run.samples[members.start : members.stop]
    with model_cache.use_models(run) as (sampler, _):
        sampler.pipeline(
            prompt=[sample.prompt for sample in samples],
            num_inference_steps=study.sampling.steps,
            guidance_scale=study.sampling.guidance,
            generator=[torch.Generator().manual_seed(sample.seed) for sample in samples],
        )


def stages(images: int) -> dict[str, float]:
    """CPU seconds of plain generation (``plain``) and of each stage of the study."""
    default = load_study("tabletop")
    share = images / (default.count or images)
    sizes = {
        "prompts.samples": images,
        "sampling.threads": 1,
        "trajectory.samples": round(share * int(default.trajectory.samples)),
        "trajectory.training": round(share * default.trajectory.training),
        "controls.permuted_weights": f"{{samples: {round(share * 160)}}}",
    }
    study = load_study("tabletop", [f"{key}={value}" for key, value in sizes.items()])
    torch.set_num_threads(1)
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> None:
        started = time.process_time()
        work(*arguments)
        seconds[stage] += time.process_time() - started

    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(study, folder)
        with model_cache.use_models(run):
            plain_batch(run, 0)  # The first call allocates.
        for batch in range(len(study.batches(run.n_stored))):
            timed("plain", plain_batch, run, batch)
            timed("generate", generate_batch, run.url, batch)
            timed("label", label_batch, run.url, batch)
        for step in range(1, study.sampling.steps + 1):
            for layer in run.probe_inputs:
                timed("probe", probe_cell, run.url, step, layer)
        print(dict(seconds), flush=True)
        timed("summary and report", build_report, run, {})
        print(dict(seconds), flush=True)
    return dict(seconds)


def measure(images: int = 240) -> list[Figure]:
    """Compare the study, and each of its stages, with plain generation of the same images."""
    seconds = stages(images)
    plain = seconds.pop("plain")
    note = f"{images} images, plain generation {plain:.0f} CPU s, one thread"
    whole = sum(seconds.values()) / plain
    figures = [
        Figure("default_study", "study / plain generation", whole, "x", at_most=1.7, note=note)
    ]
    for stage, value in seconds.items():
        figures.append(Figure("default_study", f"{stage} / plain generation", value / plain, "x"))
    return figures


if __name__ == "__main__":
    report(measure(*(int(word) for word in sys.argv[1:])))
