"""Cost of Prefect: the demo's study as a flow, compared with the same core calls on threads.

    python benchmarks/prefect_share.py [samples]

Each part is carried out in a fresh process of its own and a fresh folder.  Both use two threads:
batches one after the other (they share the device), labels beside them, two cells at a time.  It
prints seconds and their ratio, without the start of Python, and the Prefect server's start apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.schema import Study

PARTS = ("flow", "threads")
THREADS = 2


def study_of(samples: int) -> Study:
    """Load the demo's study with another number of samples."""
    return load_study("tabletop", [f"prompts.samples={samples}"])


def plain(study: Study, store: str) -> Run:
    """Carry a study out on threads without Prefect; a batch is generated and labeled in one."""
    run = prepare_run(study, store)
    batches = range(len(run.study.batches(run.n_stored)))
    cells = [
        (step, layer)
        for step in range(1, run.open("progress").sizes["step"] + 1)
        for layer in run.probe_inputs
    ]

    def batch(number: int) -> None:
        generate_batch(run.url, number)
        label_batch(run.url, number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(batch, batches))
        list(pool.map(lambda cell: probe_cell(run.url, *cell), cells))
    build_report(run, {})
    return run


def measure(part: str, samples: int) -> dict[str, float]:
    """Return the seconds of the study and of the server's start, as a flow or on threads."""
    study, started = study_of(samples), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if part != "flow":
            plain(study, folder)
            return {"study": time.monotonic() - started, "server": 0.0}
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["LDMPROBE_PREFECT_PORT"] = "4999"  # a server of its own, as on a fresh machine
        from flows.run_flow import run_flow
        from flows.server import prefect_server
        from flows.study import study_flow

        with prefect_server():
            begun = time.monotonic()
            run_flow(study_flow, study=study, store=folder)
            return {"study": time.monotonic() - begun, "server": begun - started}


def main(samples: int) -> None:
    """Measure each part in a process of its own, and print seconds and their ratio."""
    found = {}
    for part in PARTS:
        done = subprocess.run(
            [sys.executable, __file__, "--part", part, str(samples)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[part] = json.loads(done.stdout.splitlines()[-1])
        print(f"{part:8} {found[part]['study']:7.1f} s, server {found[part]['server']:.1f} s",
              flush=True)  # fmt: skip
    print(f"flow / threads: {found['flow']['study'] / found['threads']['study']:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 240)
