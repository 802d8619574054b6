"""Second process that draws a part of a report, while the first one draws the rest.

Python computes in one thread at a time, so a second thread would gain little.  The second process
is started before the first one loads its libraries, and loads its own meanwhile.  It then waits for
the summary of the run, which the first process sends.  It ends when its standard input is closed,
so that it never outlives the first process, however that one ends.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.storage.run import Run

_LOGGER = logging.getLogger(__name__)


class SecondProcess:
    """Handle of a second process, which does one job.

    Args:
        process: process that runs this module, with pipes to its standard input and output.
        pool: thread that exchanges data with the process.
    """

    def __init__(self, process: subprocess.Popen[bytes], pool: ThreadPoolExecutor) -> None:
        self._process, self._pool = process, pool
        self._answer: Future[bytes]

    def can_draw(self, run: Run) -> bool:
        """Return whether the process waits for a job, and can read the run.

        It cannot if the run has properties that only this process knows.  Runs in buckets are left
        to this process, which has their client open.
        """
        # Import here, because the process is to be started before other modules are loaded.
        from ldmprobe_core.study.properties import is_built_in

        if self._process.poll() is not None or run.location.remote:
            return False
        return all(map(is_built_in, run.study.labels.maps))

    def submit(self, run: Run, summary: Summary, samples: list[int]) -> None:
        """Send the process its job, which is to draw the page of samples and the classes.

        Args:
            run: finished run for which `can_draw` is True.
            summary: summary of the run.
            samples: indices of the samples whose classes are drawn.
        """
        record = summary.model_dump(mode="json", by_alias=True)
        job = {"run": str(Path(run.url).absolute()), "summary": record, "samples": samples}
        self._answer = self._pool.submit(self._ask, json.dumps(job).encode() + b"\n")

    def _ask(self, job: bytes) -> bytes:
        """Send a job, which is one line, and wait for the answer; it is empty after a failure."""
        question, answers = self._process.stdin, self._process.stdout
        if question is None or answers is None:
            return b""
        with suppress(BrokenPipeError):
            question.write(job)
            question.flush()
        answer = answers.read()
        self._process.wait()
        return answer

    def result(self, otherwise: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Wait for the result of the job, as `sample_figures.draw_sample_pages` returns it.

        Args:
            otherwise: function that does the job in this process if the second one fails.
        """
        answer, code = self._answer.result(), self._process.returncode
        if code == 0:
            with suppress(ValueError):
                return dict(json.loads(answer))
        _LOGGER.warning(
            "a part of the report is drawn again: the process that drew it has failed (exit code "
            "%s)",
            code,
        )
        return otherwise()


@contextmanager
def second_process() -> Iterator[SecondProcess | None]:
    """Start a second process for the time of a ``with`` block; give None if there is one CPU."""
    process = None
    if _usable_cpus() > 1:
        # An application that embeds Python may have no interpreter to start.
        with suppress(OSError):
            process = subprocess.Popen(
                # `-P` keeps the working directory out of the module search path.
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                # Ctrl-C goes to the first process alone, which then ends this one.
                process_group=0,
            )
    if process is None:
        yield None
        return
    with process, ThreadPoolExecutor(1) as pool:
        try:
            yield SecondProcess(process, pool)
        finally:
            process.kill()


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _main() -> None:
    """Load the libraries that draw, read a job from standard input, and write its result."""
    # Keep the prints of libraries out of the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ldmprobe_core.analysis.report.drawing.sample_figures import carry_out

    job = sys.stdin.buffer.readline()
    if not job:
        return
    threading.Thread(target=_end_with_first_process, daemon=True).start()
    with answers:
        json.dump(carry_out(json.loads(job)), answers)


def _end_with_first_process() -> None:
    """Wait until standard input is closed, which the end of the first process does; then end."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    _main()
