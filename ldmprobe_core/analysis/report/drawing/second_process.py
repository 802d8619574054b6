"""Second process that computes and draws a part of a report, while the first one does the rest.

Python computes in one thread at a time, so a second thread would gain little.  The second process
is started before the first one loads its libraries, and loads its own meanwhile.  It then carries
out the jobs that the first process sends, one after another: parts of the statistics, and the
pages of samples.  A job is a line of JSON.  Its answer is a line of JSON too, and arrays follow it
in NumPy's format ``npz``, so that no numbers are rounded.  The process ends when its standard input
is closed, so that it never outlives the first process, however that one ends.
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
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.storage.run import Run

SMALLEST_RUN = 10_000
"""Smallest run, in images times steps times layers, for whose statistics a second process pays.

Loading its libraries takes some five seconds of a CPU.
"""

_LOGGER = logging.getLogger(__name__)


class SecondProcess:
    """Handle of a second process, which carries out jobs one after another.

    Args:
        process: process that runs this module, with pipes to its standard input and output.
        pool: thread that exchanges data with the process.
    """

    def __init__(self, process: subprocess.Popen[bytes], pool: ThreadPoolExecutor) -> None:
        self._process, self._pool = process, pool
        self._failure = ""
        self._drawn: Future[tuple[dict[str, Any], bytes] | None]

    def can_read(self, run: Run) -> bool:
        """Return whether the process waits for a job, and can read the run.

        It cannot if the run has properties that only this process knows.  Runs in buckets are left
        to this process, which has their client open.
        """
        # Import here, because the process is to be started before other modules are loaded.
        from ldmprobe_core.study.properties import is_built_in

        if self._process.poll() is not None or run.location.remote:
            return False
        return all(map(is_built_in, run.study.labels.maps))

    def can_compute(self, run: Run) -> bool:
        """Return whether the process can compute a part of the run's statistics, and this pays."""
        # Import here, as in `can_read`.
        from ldmprobe_core.study.probe_kinds import BUILT_IN_KINDS

        kinds = set(run.study.probes.kinds)
        return self.can_read(run) and kinds <= set(BUILT_IN_KINDS) and pays_second_process(run)

    def start(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function, which may call `ask`, in the thread that waits for answers."""
        return self._pool.submit(function)

    def ask(self, job: dict[str, Any]) -> tuple[dict[str, Any], bytes] | None:
        """Send the process a job, and wait for the answer.

        Args:
            job: its ``work`` (``load``, ``statistics`` or ``draw``), and what that work needs.

        Returns:
            the record and the bytes of the arrays; None if the process failed.
        """
        question, answers = self._process.stdin, self._process.stdout
        if question is None or answers is None or question.closed:
            return None
        with suppress(BrokenPipeError):
            question.write(json.dumps(job).encode() + b"\n")
            question.flush()
        with suppress(ValueError, TypeError, KeyError):
            header = json.loads(answers.readline())
            if "error" in header:
                self._failure = header["error"]
                return None
            content = answers.read(header["bytes"])
            if len(content) == header["bytes"]:
                return header["record"], content
        # The end of its standard input ends the process if it still runs.
        with suppress(BrokenPipeError):
            question.close()
        self._failure = f"exit code {self._process.wait()}"
        return None

    def warn(self) -> None:
        """Log that this process does a job again, because the second one failed."""
        _LOGGER.warning(
            "a part of the report is made again: the process that made it has failed (%s)",
            self._failure,
        )

    def prepare(self) -> None:
        """Have the process load the libraries that compute statistics, without waiting for it."""
        self.start(lambda: self.ask({"work": "load"}))

    def submit(self, run: Run, summary: Summary, samples: list[int]) -> None:
        """Send the process the job to draw the page of samples and the classes.

        Args:
            run: finished run for which `can_read` is True.
            summary: summary of the run.
            samples: indices of the samples whose classes are drawn.
        """
        record = summary.model_dump(mode="json", by_alias=True)
        url = str(Path(run.url).absolute())
        job = {"work": "draw", "run": url, "summary": record, "samples": samples}
        self._drawn = self.start(lambda: self.ask(job))

    def result(self, otherwise: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Wait for the result of the job of `submit`, as `draw_sample_pages` returns it.

        Args:
            otherwise: function that does the job in this process if the second one fails.
        """
        answer = self._drawn.result()
        if answer is not None:
            return answer[0]
        self.warn()
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


def pays_second_process(run: Run) -> bool:
    """Return whether a second process would shorten the first report of a finished run."""
    steps = run.open("progress").sizes["step"]
    return not run.location.remote and run.n_stored * steps * len(run.layers) >= SMALLEST_RUN


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _main() -> None:
    """Load the libraries that draw, carry out jobs from standard input, and write their results."""
    # Keep the prints of libraries out of the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    # A module that cannot be loaded is an error of the first job that needs it.
    with suppress(Exception):
        from ldmprobe_core.analysis.report.drawing import sample_figures  # noqa: F401

    while True:
        content = b""
        try:
            record, content = _carry_out(json.loads(jobs.get()))
            header = {"record": record, "bytes": len(content)}
        except Exception as error:
            # The first process does the job again, and raises the error where its user sees it.
            header = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(header).encode() + b"\n" + content)
        answers.flush()


def _carry_out(job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Do a job, and return its record and the bytes of its arrays."""
    # Import here, because drawing kept statistics does not need the libraries that compute them.
    if job["work"] == "draw":
        from ldmprobe_core.analysis.report.drawing import sample_figures

        return sample_figures.carry_out(job), b""
    from ldmprobe_core.analysis.parts import run_parts

    return run_parts.part_answer(job) if job["work"] == "statistics" else ({}, b"")


def _read_jobs(jobs: SimpleQueue[bytes]) -> None:
    """Read jobs until standard input is closed, as at the end of the first process; then end."""
    while job := sys.stdin.buffer.readline():
        jobs.put(job)
    os._exit(1)


if __name__ == "__main__":
    _main()
