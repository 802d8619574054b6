"""Counts of activation values that are infinite or NaN, and of undefined scores."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.records import NonfiniteRecord, UndefinedRecord
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS
from ldmprobe_core.pipeline.statistics import nonfinite_in
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import permuted_samples


def count_nonfinite(run: Run) -> tuple[dict[str, int], list[NonfiniteRecord]]:
    """Count the non-finite activation values of a run, and list their layers and steps.

    The counts cover all samples, including training samples of which the run stores only sufficient
    statistics.

    Returns:
        number of values by network (``trained`` and ``permuted``), and a record of each cell with
        non-finite values, by descending share.
    """
    study, samples = run.study, run.samples
    counts: dict[str, int] = {}
    cells = []
    for network, group in ACTIVATION_GROUPS.items():
        if network == "permuted" and not study.controls.untrained:
            continue
        counts[network] = 0
        total = len(samples) if network == "trained" else len(permuted_samples(study, samples))
        for layer in run.layers:
            # `stored` has the axes (sample, step).
            stored = run.read(f"{group}/{layer}", "nonfinite")
            by_step = stored.sum(0, dtype=np.int64)
            if study.capture.keep == "statistics":
                by_step = by_step + nonfinite_in(run, network, layer)
            counts[network] += int(by_step.sum())
            if not by_step.any():
                continue
            sizes = run.open(f"{group}/{layer}").sizes
            values = total * sizes["y"] * sizes["x"] * sizes["channel"]
            cells += [
                NonfiniteRecord(
                    network=network,
                    step=int(step) + 1,
                    layer=layer,
                    share=float(by_step[step] / values),
                    samples=int((stored[:, step] > 0).sum()),
                )
                for step in np.flatnonzero(by_step)
            ]
    return counts, sorted(cells, key=lambda cell: -cell.share)


def undefined_record(
    scores: np.ndarray, of_all: int, masks: np.ndarray | None, choice: np.ndarray
) -> UndefinedRecord:
    """Count the undefined scores and the empty masks of a property.

    Args:
        scores: test scores of its best cell in the main metric, (test sample,).
        of_all: number of undefined scores over all cells and held-out samples.
        masks: labels of the test samples, (test sample, y, x); None if they are no masks.
        choice: validation score of each cell, of any shape; not finite if undefined.
    """
    record = UndefinedRecord(
        best=int(np.isnan(scores).sum()), any=of_all, unchosen=not np.isfinite(choice).any()
    )
    if masks is not None:
        empty = ~(masks == 1).any((1, 2))
        # For an empty label mask, a Dice score of 1 means that the predicted mask is empty too.
        record.both_empty = int((empty & (scores == 1)).sum())
        record.truth_empty = int(empty.sum())
    return record
