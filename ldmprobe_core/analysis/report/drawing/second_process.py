"""Second process that computes and draws a part of a report, while the first one does the rest.

The second process is started before the first one loads its libraries, and loads its own meanwhile.
It then carries out the jobs that the first process sends, one after another: parts of the
statistics, and the pages of samples.  Arrays are exchanged in NumPy's format ``npz``, so that no
numbers are rounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess, helper_process

if TYPE_CHECKING:
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.storage.run import Run

SMALLEST_RUN = 10_000
"""Smallest run, in images times steps times layers, for whose statistics a second process pays.

Loading its libraries takes some five seconds of a CPU.
"""

STATISTICS = "ldmprobe_core.analysis.parts.run_parts:part_answer"
"""Function that computes a part of the statistics."""

DRAW = "ldmprobe_core.analysis.report.drawing.sample_figures:draw_answer"
"""Function that draws the page of samples and the figures of classes."""

LOAD = "ldmprobe_core.analysis.parts.run_parts:nothing"
"""Function that does nothing, so that its module is loaded."""

_LOGGER = logging.getLogger(__name__)


class SecondProcess:
    """Handle of a second process, which carries out jobs one after another.

    Args:
        helper: process that carries the jobs out.
        pool: thread that exchanges data with the process.
    """

    def __init__(self, helper: HelperProcess, pool: ThreadPoolExecutor) -> None:
        self._helper, self._pool = helper, pool
        self._drawn: Future[tuple[dict[str, Any], bytes] | None]

    def can_read(self, run: Run) -> bool:
        """Return whether the process waits for a job, and can read the run.

        It cannot if the run has properties that only this process knows.  Runs in buckets are left
        to this process, which has their client open.
        """
        # Import here, because the process is to be started before other modules are loaded.
        from ldmprobe_core.study.properties import is_built_in

        if not self._helper.runs or run.location.remote:
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

    def ask(self, function: str, **job: Any) -> tuple[dict[str, Any], bytes] | None:
        """Send the process a job, and wait for the answer (`HelperProcess.ask`)."""
        return self._helper.ask(function, **job)

    def warn(self) -> None:
        """Log that this process does a job again, because the second one failed."""
        _LOGGER.warning(
            "a part of the report is made again: the process that made it has failed (%s)",
            self._helper.failure,
        )

    def prepare(self) -> None:
        """Have the process load the libraries that compute statistics, without waiting for it."""
        self.start(lambda: self.ask(LOAD))

    def submit(self, run: Run, summary: Summary, samples: list[int]) -> None:
        """Send the process the job to draw the page of samples and the classes.

        Args:
            run: finished run for which `can_read` is True.
            summary: summary of the run.
            samples: indices of the samples whose classes are drawn.
        """
        record = summary.model_dump(mode="json", by_alias=True)
        url = str(Path(run.url).absolute())
        self._drawn = self.start(lambda: self.ask(DRAW, url=url, summary=record, samples=samples))

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
    # The pool is left last, because its thread waits for an answer until the process has ended.
    with ThreadPoolExecutor(1) as pool, helper_process(DRAW.partition(":")[0]) as helper:
        yield SecondProcess(helper, pool) if helper else None


def pays_second_process(run: Run) -> bool:
    """Return whether a second process would shorten the first report of a finished run."""
    steps = run.open("progress").sizes["step"]
    return not run.location.remote and run.n_stored * steps * len(run.layers) >= SMALLEST_RUN
