"""Helper process, which carries out jobs of this process on another CPU.

Python computes in one thread at a time, so that threads whose computations are many short ones gain
little from a second CPU.  A helper process loads the libraries that it needs as soon as it is
started, and then carries out the jobs that this process sends, one after another.  A job is a line
of JSON that names a function.  Its answer is a line of JSON too, and bytes, such as arrays in
NumPy's format ``npz``, may follow it.  The process ends when its standard input is closed, so that
it never outlives this process, however that one ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from queue import SimpleQueue
from typing import Any


class HelperProcess:
    """Handle of a helper process, which carries out jobs one after another.

    Args:
        process: process that runs this module, with pipes to its standard input and output.

    Attributes:
        failure: why the last job has failed that `ask` returned None for; empty before that.
        closed: whether the ``with`` block of `helper_process` has ended, and the process with it.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.failure = ""
        self.closed = False

    @property
    def runs(self) -> bool:
        """True if the process has not ended."""
        return self._process.poll() is None

    def ask(self, function: str, **job: Any) -> tuple[dict[str, Any], bytes] | None:
        """Have the process call a function, and wait for the answer, for as long as it takes.

        One thread at a time may call this method.

        Args:
            function: name of the function, such as ``package.module:function``.  It takes ``job``
                as keyword arguments, and returns a record that JSON can hold and bytes.
            job: arguments of the function that JSON can hold.

        Returns:
            the record and the bytes; None if the function raised an error or the process failed,
            so that the caller should do the job itself.
        """
        question, answers = self._process.stdin, self._process.stdout
        if question is None or answers is None or question.closed:
            return None
        # The pipe is broken if the process has ended, and closed if the ``with`` block has.
        with suppress(BrokenPipeError, ValueError):
            question.write(json.dumps([function, job]).encode() + b"\n")
            question.flush()
        with suppress(ValueError, TypeError, KeyError):
            header = json.loads(answers.readline())
            if "error" in header:
                self.failure = header["error"]
                return None
            content = answers.read(header["bytes"])
            if len(content) == header["bytes"]:
                return header["record"], content
        # The end of its standard input ends the process if it still runs.
        with suppress(BrokenPipeError):
            question.close()
        self.failure = f"exit code {self._process.wait()}"
        return None


@contextmanager
def helper_process(*modules: str) -> Iterator[HelperProcess | None]:
    """Start a helper process for the time of a ``with`` block; give None if there is one CPU.

    Args:
        modules: names of modules that the process imports before its first job.
    """
    process = None
    if _usable_cpus() > 1:
        # An application that embeds Python may have no interpreter to start.
        with suppress(OSError):
            process = subprocess.Popen(
                # `-P` keeps the working directory out of the module search path.
                [sys.executable, "-P", "-m", __name__, *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                # Ctrl-C goes to this process alone, which then ends the helper.
                process_group=0,
            )
    if process is None:
        yield None
        return
    with process:
        helper = HelperProcess(process)
        try:
            yield helper
        finally:
            helper.closed = True
            process.kill()


def _usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def answer_jobs(modules: list[str]) -> None:
    """Import modules, carry out jobs from standard input, and write their answers, without end."""
    # Keep the prints of libraries out of the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    for module in modules:
        # A module that cannot be loaded is an error of the first job that needs it.
        with suppress(Exception):
            import_module(module)

    while True:
        content = b""
        try:
            function, job = json.loads(jobs.get())
            module, _, name = function.partition(":")
            record, content = getattr(import_module(module), name)(**job)
            header = json.dumps({"record": record, "bytes": len(content)})
        except Exception as error:
            # The first process does the job again, and raises the error where its user sees it.
            header, content = json.dumps({"error": f"{type(error).__name__}: {error}"}), b""
        answers.write(header.encode() + b"\n" + content)
        answers.flush()


def _read_jobs(jobs: SimpleQueue[bytes]) -> None:
    """Read jobs until standard input is closed, as at the end of the first process; then end."""
    while job := sys.stdin.buffer.readline():
        jobs.put(job)
    os._exit(1)


if __name__ == "__main__":
    answer_jobs(sys.argv[1:])
