"""Rate of a shuffled stream of tokens, against a plain sequential read of the same chunks.

    python -m benchmarks.tokens [RUN [LAYER]]

Without a run, one layer of the default study's shape is written (240 samples, 15 steps, 16 x 16
tokens of 64 channels, 118 MB).  Every file is read once before the measurement, so that the figures
are those of files in memory and not of the disk.
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
from torch.utils.data import DataLoader

import ldmprobe as lp
from benchmarks.figures import plain_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.nodes import open_array


def synthetic_run(store: str) -> str:
    """Create a run whose first layer holds random activations, and return its address."""
    run = lp.open_run(prepare_run(plain_study(240, 15), store).url)
    group = f"activations/{run.layers[0]}"
    shape, batch = run.activations(run.layers[0]).shape, run.study.sampling.batch
    rng = np.random.default_rng(0)
    for index, start in enumerate(range(0, shape[0], batch)):
        part = slice(start, min(start + batch, shape[0]))
        values = rng.normal(size=(part.stop - start, *shape[1:])).astype(np.float16)
        run.write(group, {"activation": values}, sample=part)
        run.progress.mark_done("generated", index)
    return run.url


def read_chunks(run: lp.Run, layer: str) -> int:
    """Read every stored chunk in order; return the number of tokens."""
    array = open_array(run.store, run.url, f"activations/{layer}/activation")
    tokens = 0
    for start in range(0, array.shape[0], array.chunks[0]):
        for row in range(array.shape[1]):
            tokens += array[start : start + array.chunks[0], row][..., 0].size
    return tokens


def main(url: str, layer: str | None = None) -> None:
    """Print the rates of the shuffled stream and of the sequential read.

    Chunks hold samples of all splits, so the stream reads more than the training tokens that it
    gives; its rate of reading is printed too.
    """
    run = lp.open_run(url)
    layer = layer or run.layers[0]
    channels = run.activations(layer).sizes["channel"]
    read_chunks(run, layer)

    def show(name: str, tokens: int, seconds: float, clock: str = "second") -> None:
        rate, size = tokens / seconds, channels * 2 / 1e6
        print(f"{name}: {rate:,.0f} tokens, {rate * size:.0f} MB of float16 a {clock}")

    started, busy = time.perf_counter(), time.process_time()
    stored = read_chunks(run, layer)
    show("sequential read", stored, time.perf_counter() - started)
    show("    by CPU time", stored, time.process_time() - busy, "CPU second")
    for workers in (0, 1, 2):
        stream = run.tokens(layer)
        started, busy = time.perf_counter(), time.process_time()
        tokens = sum(len(batch) for batch in DataLoader(stream, None, num_workers=workers))
        seconds = time.perf_counter() - started
        show(f"shuffled training tokens, {workers} workers", tokens, seconds)
        show("    reading for that", stored, seconds)
        if not workers:  # else the workers' CPU time is not in this process
            show("    by CPU time", stored, time.process_time() - busy, "CPU second")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(synthetic_run(folder))
