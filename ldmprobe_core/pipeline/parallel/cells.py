"""Division of the cells of a run between this process and helper processes.

The fits of one cell are thousands of short computations, for which threads of one process wait for
each other.  On two cores, two threads probe the default study 1.3 times as fast as one, and a
thread and a helper process 1.7 times, with the start of that process
(``benchmarks/cell_helpers.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess, helper_process
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.probe_kinds import BUILT_IN_KINDS
from ldmprobe_core.study.properties import is_built_in

SMALLEST_WORK = 10_000
"""Smallest number of images times cells for which a helper process pays.

Loading its libraries takes some four seconds of a CPU.  A cell of 240 images takes half a second.
"""

_LIBRARY_BYTES = 720 << 20
"""Memory of a helper process that has loaded its libraries, with PyTorch 2.14 on Linux."""

_LOGGER = logging.getLogger(__name__)
_idle: SimpleQueue[HelperProcess] = SimpleQueue()


def probe_cell_in_parallel(url: str, step: int, layer: str) -> dict[str, Any]:
    """Train and score all probes of one cell, in an idle helper process if there is one.

    Arguments, result and errors are those of `probe_cell`, which this function calls if no helper
    process is idle, or if the helper process fails.
    """
    try:
        helper = _idle.get_nowait()
    except Empty:
        return probe_cell(url, step, layer)
    answer = helper.ask(_ANSWER, url=url, step=step, layer=layer)
    if helper.runs:
        _idle.put(helper)
    if answer is not None:
        return answer[0]
    _LOGGER.warning(
        "a cell is probed again: the helper process that probed it has failed (%s)", helper.failure
    )
    return probe_cell(url, step, layer)


def answer_cell(url: str, step: int, layer: str) -> tuple[dict[str, Any], bytes]:
    """Train and score all probes of one cell in a helper process; return the result of the unit."""
    return probe_cell(url, step, layer), b""


_ANSWER = f"{answer_cell.__module__}:{answer_cell.__name__}"


@contextmanager
def cell_helpers(run: Run, number: int) -> Iterator[int]:
    """Start helper processes that take part in probing a run, for the time of a ``with`` block.

    None are started if the cells that are left take less time than loading the libraries, or if the
    study has properties or probes that only this process knows.

    Args:
        run: run whose batches are generated and labeled.
        number: largest number of helper processes.

    Yields:
        the number of helper processes started.
    """
    with ExitStack() as stack:
        if not (_pays(run) and _is_known_to_helpers(run)):
            number = 0
        started = [
            stack.enter_context(helper_process(answer_cell.__module__)) for _ in range(number)
        ]
        helpers = [helper for helper in started if helper is not None]
        for helper in helpers:
            _idle.put(helper)
        # Take the helpers out of the queue before they are ended.
        stack.callback(_empty)
        yield len(helpers)


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
    return _LIBRARY_BYTES + 4 * labels + 10 * cell


def _pays(run: Run) -> bool:
    """Return whether the cells that are left take longer than loading a helper's libraries."""
    left = np.count_nonzero(~run.progress.completed(PROBE))
    return bool(run.n_stored * left >= SMALLEST_WORK)


def _is_known_to_helpers(run: Run) -> bool:
    """Return whether every process of this package knows the study's properties and probes."""
    study = run.study
    return all(map(is_built_in, study.labels.maps)) and BUILT_IN_KINDS.issuperset(
        study.probes.kinds
    )


def _empty() -> None:
    """Take all helper processes out of the queue."""
    while True:
        try:
            _idle.get_nowait()
        except Empty:
            return
