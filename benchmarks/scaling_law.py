"""Growth of time and memory with samples, steps, layers and workers, as power-law exponents.

    python benchmarks/scaling_law.py

The embedded study without controls, stage by stage in one process, each size in a process of its
own: generation with its writing, labels, and probes.  An exponent of 1 is linear; a stage that does
not depend on what grows has one of 0.  Fixed costs (loading the model, laying the run out) are left
out of times.  Workers are Dask processes of one BLAS thread each that probe a stage's cells.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from benchmarks.capture import peak_beyond
from benchmarks.figures import Figure, exponent, plain_study, report, without_controls
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.schema import Study

BASE = {"samples": 64, "steps": 2, "layers": 2}
GROWING = {"samples": (64, 256, 1024), "steps": (3, 6, 12), "layers": (1, 2, 4)}
LAYERS = (
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
)
"""All of one size, so that twice as many layers are twice as many values."""
STAGES = ("generate", "label", "probe")


def study_of(samples: int, steps: int, layers: int) -> Study:
    """Build a study of a given size without controls."""
    study = without_controls(plain_study(samples, steps))
    content = study.model_dump(mode="json", by_alias=True)
    content["capture"]["layers"] = LAYERS[:layers]
    return parse_study(content)


def one(size: dict[str, int]) -> dict[str, float]:
    """Carry a study of one size out, and return seconds and bytes of memory by stage."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(study_of(**size), folder)
        batches = range(len(run.study.batches(run.n_stored)))
        cells = [(s, name) for s in range(1, size["steps"] + 1) for name in run.probe_inputs]
        with model_cache.use_models(run):
            pass  # loads the model, so that its time is not measured
        found: dict[str, float] = {}

        def generate() -> None:
            for batch in batches:
                generate_batch(run.url, batch)

        def label() -> None:
            for batch in batches:
                label_batch(run.url, batch)

        def probe() -> None:
            for cell in cells:
                probe_cell(run.url, *cell)

        for work in (generate, label, probe):
            started = time.perf_counter()
            found[f"{work.__name__} memory"] = peak_beyond(work)
            found[work.__name__] = time.perf_counter() - started
        return found


def in_a_process(size: dict[str, int]) -> dict[str, float]:
    """Call `one` in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling_law", "--one", json.dumps(size)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> list[Figure]:
    """Measure studies of growing size, and fit the exponents."""
    figures = []
    for what, sizes in GROWING.items():
        found = [in_a_process(BASE | {what: size}) for size in sizes]
        note = f"{what} {', '.join(str(size) for size in sizes)}"
        for stage in STAGES:
            slope = exponent(list(sizes), [f[stage] for f in found])
            goal = 1.1 if what != "layers" or stage == "probe" else None
            figures.append(
                Figure("scaling", f"{stage}: time by {what}, exponent", slope, "", at_most=goal,
                       note=note)
            )  # fmt: skip
        if what == "samples":
            for stage in STAGES:
                values = [f[f"{stage} memory"] / 1e6 for f in found]
                text = ", ".join(f"{value:.0f}" for value in values)
                slope = exponent(list(sizes), [max(value, 1) for value in values])
                figures.append(
                    Figure("scaling", f"{stage}: memory by samples, exponent", slope, "",
                           at_most=1.1, note=f"{note}: {text} MB")
                )  # fmt: skip
    return [*figures, _workers()]


def _workers() -> Figure:
    """Measure how many times as many cells two Dask workers probe per second as one."""
    from distributed import Client

    from flows.workers import local_cluster

    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(study_of(256, 3, 4), folder)
        for batch in range(len(run.study.batches(run.n_stored))):
            generate_batch(run.url, batch)
            label_batch(run.url, batch)
        cells = [(s, name) for s in range(1, 4) for name in run.probe_inputs]
        for workers in (1, 2):
            with local_cluster(workers, 0) as cluster, Client(cluster) as client:
                client.wait_for_workers(workers)
                first = [client.submit(probe_cell, run.url, *cells[i], workers=[w])
                         for i, w in enumerate(client.scheduler_info()["workers"])]  # fmt: skip
                client.gather(first)  # not timed: workers read labels and import code
                for step, name in cells:
                    run.progress.clear("probed", step - 1, run.probe_inputs.index(name))
                started = time.perf_counter()
                client.gather(client.map(lambda c: probe_cell(run.url, *c), cells, pure=False))
                seconds[workers] = time.perf_counter() - started
    return Figure("scaling", "probes: one worker / two", seconds[1] / seconds[2], "x",
                  note=f"{len(cells)} cells, 256 samples; 2 is linear")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(json.loads(sys.argv[2]))))
    else:
        report(measure())
