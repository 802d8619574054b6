"""Division of the cells of a run between this process and helper processes.

The fits of one cell are thousands of short computations, for which threads of one process wait for
each other.  On two cores, two threads probe the default study 1.3 times as fast as one, and a
thread and a helper process 1.7 times, with the start of that process
(``benchmarks/cell_helpers.py``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess, helper_process
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.probe_kinds import BUILT_IN_KINDS
from ldmprobe_core.study.properties import is_built_in

SMALLEST_WORK = 10_000
"""Smallest number of images times cells for each helper process, so that it pays.

Loading its libraries takes some four seconds of a CPU.  A cell of 240 images takes half a second.
"""

HELPER_LIBRARY_BYTES = 720 << 20
"""Memory of a helper process that has loaded its libraries, with PyTorch 2.14 on Linux."""

_LOGGER = logging.getLogger(__name__)


class _Helpers:
    """Helper processes of one `cell_helpers` block, each used by one thread at a time."""

    def __init__(self, idle: list[HelperProcess]) -> None:
        self._idle, self._busy, self._open = idle, 0, True
        self._changed = threading.Condition()

    def take(self) -> HelperProcess | None:
        """Take an idle helper process; None if there is none."""
        with self._changed:
            if not (self._open and self._idle):
                return None
            self._busy += 1
            return self._idle.pop()

    def give_back(self, helper: HelperProcess, works: bool) -> None:
        """Give back a helper process, which is not used again unless it works."""
        with self._changed:
            self._busy -= 1
            self._idle += [helper] if works else []
            self._changed.notify_all()

    def close(self) -> None:
        """Let no thread take a helper process any more, and wait until none is busy."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._busy)


_helpers = _Helpers([])


def probe_cell_in_parallel(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score all probes of one cell, in an idle helper process if there is one.

    Arguments, result and errors are those of `probe_cell`, which this function calls if no helper
    process is idle, or if the helper process fails.  One that has failed gets no further cell.

    Raises:
        RunError: the helper process was ended in the midst of the cell, because the run stops.
    """
    helpers = _helpers
    helper = helpers.take()
    if helper is None:
        return probe_cell(url, step, layer)
    answer = None
    try:
        answer = helper.ask(_ANSWER, url=url, step=step, layer=layer)
    finally:
        helpers.give_back(helper, works=answer is not None)
    if answer is not None:
        return answer[0]
    if helper.closed:
        raise RunError(
            f"{url}: the run stops, and step {step} of {layer} is not probed. Fix: repeat the "
            "command, which continues the run"
        )
    _LOGGER.warning(
        "a cell is probed again: the helper process that probed it has failed (%s)", helper.failure
    )
    return probe_cell(url, step, layer)


def answer_cell(url: str, step: int, layer: str) -> tuple[dict[str, Any], bytes]:
    """Train and score all probes of one cell in a helper process; return the result of the unit."""
    return probe_cell(url, step, layer), b""


_ANSWER = f"{answer_cell.__module__}:{answer_cell.__name__}"


@contextmanager
def cell_helpers(run: Run, most: int) -> Iterator[int]:
    """Start helper processes that take part in probing a run, for the time of a ``with`` block.

    There are as many as the cells that are left keep busy for longer than a helper process takes to
    load its libraries, and none if the study has properties or probes that only this process knows.
    The block ends when all cells in helper processes are complete.

    Args:
        run: run whose batches are generated and labeled.
        most: largest number of helper processes.

    Yields:
        the number of helper processes started.
    """
    global _helpers
    number = min(most, helpers_that_pay(run))
    with ExitStack() as stack:
        started = [
            stack.enter_context(helper_process(answer_cell.__module__)) for _ in range(number)
        ]
        helpers = [helper for helper in started if helper is not None]
        own = _Helpers(list(helpers))
        former, _helpers = _helpers, own
        try:
            yield len(helpers)
        finally:
            # Also if the run stops: it waits for the cells of its threads in the same way.
            _helpers = former
            own.close()


def helper_bytes(run: Run) -> int:
    """Estimate the memory of a helper process that probes a run, in bytes.

    It holds the labels of all samples with their block means and ranks, and the activations of one
    cell in float64 and in parts.  The factors are those with which the estimate for the default
    study is the measured memory, 0.89 GB.
    """
    labels = run.open("labels").nbytes
    cell = max(
        (run.open(f"activations/{layer}").activation[:, :1].nbytes for layer in run.layers),
        default=0,
    )
    return HELPER_LIBRARY_BYTES + 4 * labels + 10 * cell


def helpers_that_pay(run: Run) -> int:
    """Return the largest number of helper processes that pay for the cells that are left."""
    if not _is_known_to_helpers(run):
        return 0
    left = np.count_nonzero(~run.progress.completed(PROBE))
    return int(run.n_stored * left // SMALLEST_WORK)


def _is_known_to_helpers(run: Run) -> bool:
    """Return whether every process of this package knows the study's properties and probes."""
    study = run.study
    return all(map(is_built_in, study.labels.maps)) and BUILT_IN_KINDS.issuperset(
        study.probes.kinds
    )
