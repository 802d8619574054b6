"""Cost of capturing and writing activations: time and memory compared with plain generation.

    python benchmarks/capture.py [images]

The same images at the same batch size, the same threads, in one process: plain diffusers up to the
finished images; the same with every self-attention layer captured; and captured and written, to a
local disk and to an object store on this machine (SeaweedFS), whose own work then is on the same
cores.  The ways go round in turn, and the median of the rounds' ratios counts.  Memory is what the
process held at most beyond what it held before, in a process of its own for each way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.figures import Figure, plain_study, report, without_controls
from infra.local_store import object_store
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.activation_sinks import ActivationWriter, peak_activation_bytes
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.run import Run

WAYS = ("plain", "captured", "local", "s3")
ROUNDS = 5


class Nowhere:
    """Activation sink that waits for each copy and discards it."""

    def __call__(self, _variant: str, _step: int, transfer: Any) -> None:
        transfer.result()


def once(way: str, run: Run) -> float:
    """Generate all of a run's images in one of the `WAYS`, and return the seconds that it took."""
    study, samples = run.study, run.samples
    torch.set_num_threads(study.sampling.threads)
    with model_cache.use_models(run) as (sampler, _):
        started = time.perf_counter()
        for members in study.batches(len(samples)):
            part = samples[members.start : members.stop]
            if way == "plain":
                sampler.pipeline(
                    prompt=[s.prompt for s in part],
                    num_inference_steps=study.sampling.steps,
                    guidance_scale=study.sampling.guidance,
                    generator=[torch.Generator().manual_seed(s.seed) for s in part],
                )
            elif way == "captured":
                sampler.sample(part, Nowhere(), step_images=False)
            else:
                region = slice(members.start, members.stop)
                with ActivationWriter(run, region, steps=study.sampling.steps) as into:
                    sampler.sample(part, into, step_images=False)
        return time.perf_counter() - started


@contextmanager
def runs(images: int) -> Iterator[dict[str, Run]]:
    """Create a new run for each of the `WAYS`, and load the model."""
    study = without_controls(plain_study(images, 15))
    with tempfile.TemporaryDirectory() as folder, object_store(Path(folder) / "s3") as environment:
        os.environ.update(environment)
        local, remote = (prepare_run(study, f"{place}/a") for place in (folder, "s3://runs"))
        with model_cache.use_models(local) as (sampler, _):
            sampler.pipeline.set_progress_bar_config(disable=True)
        yield {"plain": local, "captured": local, "local": local, "s3": remote}


def measure(images: int = 16) -> list[Figure]:
    """Measure time and memory of each of the `WAYS`, relative to plain generation."""
    figures = []
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    with runs(images) as of:
        for way in WAYS:
            once(way, of[way])
        for _ in range(ROUNDS):
            seconds = {way: once(way, of[way]) for way in WAYS}
            for way in WAYS:
                ratios[way].append(seconds[way] / seconds["plain"])
        servers = [p for p in psutil.Process().children() if p.name() == "weed"]
        before = sum(sum(p.cpu_times()[:2]) for p in servers)
        seconds["s3"] = once("s3", of["s3"])
        served = sum(sum(p.cpu_times()[:2]) for p in servers) - before
        served /= seconds["s3"] * (os.cpu_count() or 1)
        run = of["local"]
        step = sum(
            run.open(f"activations/{name}").activation.nbytes // 15 for name in run.probe_inputs
        )  # bytes of one step of all images
    batch = plain_study(images, 15).sampling.batch
    note = f"{images} images, batch {batch}, 15 steps, guidance, 7 layers"
    for way, name, goal in (
        ("captured", "captured / plain generation", None),
        ("local", "captured and written to disk / plain generation", 1.10),
        ("s3", "captured and written to SeaweedFS / plain generation", 1.10),
    ):
        middle = float(np.median(ratios[way]))
        spread = f"{min(ratios[way]):.2f} to {max(ratios[way]):.2f}"
        figures.append(Figure("capture", name, middle, "x", at_most=goal, note=f"{note}; {spread}"))
    figures.append(
        Figure("capture", "share of this machine's cores that SeaweedFS took meanwhile", served, "")
    )
    memory = {
        way: json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.capture", "--memory", way, str(images)],
                capture_output=True, text=True, check=True,
            ).stdout.splitlines()[-1]
        )
        for way in ("plain", "local")
    }  # fmt: skip
    bound, beyond = (
        peak_activation_bytes(step * batch // images, 15),
        memory["local"] - memory["plain"],
    )
    figures.append(
        Figure("capture", "memory beyond plain generation", beyond / 1e6, "MB",
               at_most=bound / 1e6, note="the goal is what `ldmprobe check` foretells")
    )  # fmt: skip
    return figures


def peak_beyond(work: Callable[[], Any]) -> int:
    """Return the peak memory of this process during some work, less its memory before, in bytes."""
    process, stop, most = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, process.memory_info().rss)
            stop.wait(0.005)

    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return most - before


def memory_of(way: str, images: int) -> int:
    """Return the bytes of memory that one of the `WAYS` takes in this process."""
    study = without_controls(plain_study(images, 15))
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(study, folder)
        with model_cache.use_models(run) as (sampler, _):
            sampler.pipeline.set_progress_bar_config(disable=True)
        return peak_beyond(lambda: once(way, run))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory_of(sys.argv[2], int(sys.argv[3])))
    else:
        report(measure(*(int(word) for word in sys.argv[1:])))
