"""Time to probe the cells of a finished run with threads, and with a helper process beside them.

    python -m benchmarks.cell_helpers RUN [cells]

All cells of a copy of the run (or the first ones) are probed three times: by one thread, by two
threads of this process, and by two threads of which one asks a helper process
(`ldmprobe_core.pipeline.parallel.cells`), whose start and imports are part of the time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure, report
from ldmprobe_core.pipeline.parallel.cells import cell_helpers
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE

WAYS = {"one thread": (1, 0), "two threads": (2, 0), "a thread and a helper process": (2, 1)}
"""Number of threads and of helper processes."""


def seconds(run: Run, cells: int | None, threads: int, helpers: int) -> float:
    """Probe the first cells of a run, or all of them, and return the seconds that it took."""
    operations = UNITS[PROBE.verb]
    units = operations.list_units(run)[:cells]
    for unit in units:
        step, layer = unit.index
        run.progress.clear(PROBE, int(step) - 1, run.probe_inputs.index(str(layer)))
    started = time.perf_counter()
    with cell_helpers(run, helpers), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda unit: operations.carry_out(run.url, *unit.index), units))
    return time.perf_counter() - started


def measure(url: str, cells: int | None = None) -> list[Figure]:
    """Compare the `WAYS` on a copy of a finished run."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(url, f"{folder}/run")
        run = Run(f"{folder}/run")
        seconds(run, 1, 1, 0)  # reads the labels, which is not timed
        taken = {way: seconds(run, cells, *numbers) for way, numbers in WAYS.items()}
    note = ", ".join(f"{way} {value:.1f} s" for way, value in taken.items())
    one, *others = taken
    return [
        Figure("cell_helpers", f"{one} / {way}", taken[one] / taken[way], "x", note=note)
        for way in others
    ]


if __name__ == "__main__":
    report(measure(sys.argv[1], *(int(word) for word in sys.argv[2:])))
