"""Run of all benchmarks that take minutes, one after another: `make bench`.

    python -m benchmarks.suite [--out FILE] [--commit] [part ...]

Each part runs in a process of its own; one that fails is said so and stops none of the others.  It
prints one table, beside the figures that were last committed (`benchmarks/figures.json`), and
writes the new ones as JSON to FILE (build/bench.json).  With ``--commit`` they take the committed
ones' place, and the table in docs/benchmarks.md; parts that were not measured keep theirs.

Figures are ratios within one run, sizes, or differences of scores; seconds are left to the machine.
A quiet machine is needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import (
    COMMITTED,
    DOCUMENT,
    Figure,
    as_json,
    committed,
    documented,
    key,
    report,
)

PARTS = ("paper_way", "capture", "probing", "sums", "store", "scaling_law", "gpu")


def one(part: str) -> list[Figure]:
    """Measure one benchmark in a new process, and return its figures.

    Raises:
        subprocess.CalledProcessError: the benchmark failed; its output is in ``stderr``.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite", "--part", part],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Figure(**figure) for figure in json.loads(done.stdout.splitlines()[-1])]


def of_part(part: str) -> list[Figure]:
    """Measure one benchmark in this process; that of the GPU only if there is one."""
    import torch

    if part == "gpu" and not torch.cuda.is_available():
        return []
    measured: list[Figure] = importlib.import_module(f"benchmarks.{part}").measure()
    return measured


def main() -> int:
    """Run the chosen benchmarks, print their figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="build/bench.json")
    parser.add_argument("--commit", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", default=PARTS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps([asdict(figure) for figure in of_part(chosen.part)]))
        return 0
    figures, failed, seconds = [], [], {}
    for part in chosen.parts:
        started = time.monotonic()
        try:
            found = one(part)
        except subprocess.CalledProcessError as error:
            print(f"{part} failed:\n{error.stderr[-2000:]}", flush=True)
            failed.append(part)
            continue
        seconds[part] = round(time.monotonic() - started)
        print(f"{part}: {seconds[part]} s" + ("" if found else ", nothing to measure"), flush=True)
        figures += found
    report(figures, {key(figure): figure.value for figure in committed()})
    out = Path(chosen.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).date().isoformat()
    out.write_text(as_json(figures, command="make bench", date=date, seconds=seconds))
    print(f"written to {out}")
    if chosen.commit:
        measured = {figure.part for figure in figures}
        kept = [figure for figure in committed() if figure.part not in measured]
        content = as_json(kept + figures, command="make bench", date=date, seconds=seconds)
        COMMITTED.write_text(content)
        DOCUMENT.write_text(documented(DOCUMENT.read_text(), json.loads(content)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
