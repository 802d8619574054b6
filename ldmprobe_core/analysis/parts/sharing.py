"""Division of a run's statistics between two processes."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmprobe_core.analysis.parts.run_parts import part_of_message
from ldmprobe_core.analysis.report.drawing.second_process import STATISTICS
from ldmprobe_core.storage.run import Run

if TYPE_CHECKING:
    from ldmprobe_core.analysis.report.drawing.second_process import SecondProcess


def compute_parts(
    run: Run,
    jobs: Sequence[dict[str, Any]],
    compute: Callable[[dict[str, Any]], Any],
    second: SecondProcess | None,
) -> list[Any]:
    """Compute parts of a run's statistics, if possible in two processes.

    Each process takes the next part when it has finished one, the second from the front of the
    list and this one from its end.  What the second process has not answered is computed here.

    Args:
        run: finished run.
        jobs: parts to compute, as `run_parts.RunParts.compute` takes them.
        compute: function that computes one part in this process.
        second: a second process; None computes all parts in this one.

    Returns:
        the parts, in the order of `jobs`.
    """
    if second is None or not second.can_compute(run):
        return [compute(job) for job in jobs]
    left, parts = deque(range(len(jobs))), dict[int, Any]()
    url = str(Path(run.url).absolute())

    def ask() -> None:
        while (index := _next(left.popleft)) is not None:
            answer = second.ask(STATISTICS, url=url, part=jobs[index])
            if answer is None:
                second.warn()
                return
            record, content = answer
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                parts[index] = part_of_message(jobs[index], (record, dict(arrays)))

    asked = second.start(ask)
    while (index := _next(left.pop)) is not None:
        parts[index] = compute(jobs[index])
    # If the second process is still loading its libraries, do not wait for it.
    if not asked.cancel():
        asked.result()
    return [parts[i] if i in parts else compute(job) for i, job in enumerate(jobs)]


def _next(take: Callable[[], int]) -> int | None:
    """Take an element from one end of a queue; None if it is empty."""
    try:
        return take()
    except IndexError:
        return None
