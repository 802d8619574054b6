"""Sufficient statistics of training samples, whose size depends on channels and not on samples.

A training batch's activations stay in memory until its labels exist; then each cell adds them to
its sums of products (`ldmprobe_core.probing.statistics.SufficientStatistics`), and they are
discarded.  Training batches are divided among *accumulators*, each filled by one worker at a time,
a few batches a unit of work.  An accumulator has two buffers in the store: a unit reads the active
one, which holds all earlier units, adds its batches, and writes the other.  Its progress record,
written last, makes that buffer the active one, so a unit that is interrupted or retried is counted
once, and no two workers share a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.pipeline.activation_sinks import Activations
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE
from ldmprobe_core.study.batching import (
    BUFFERS,
    STATISTICS_GROUP,
    accumulation_units,
    label_assignments,
)
from ldmprobe_core.study.conditions import ASSIGNMENTS
from ldmprobe_core.study.schema import Study


def run_accumulation_units(run: Run) -> list[list[list[range]]]:
    """Training batches grouped by accumulator and unit; empty if the run keeps no statistics."""
    study = run.study
    if study.capture.keep == "activations":
        return []
    first = run.n_stored if study.capture.keep == "statistics" else 0
    return accumulation_units(study, first, run.open("samples").sizes["sample"])


@dataclass
class Accumulator:
    """Sums over the training samples of some units, in memory.

    Attributes:
        grams: network and layer to (step, entry) float64, lower triangles of cells' Gram matrices.
        nonfinite: network and layer to (step,) int64, values that are not finite in float16.
        labels: property to (y, x) float64, the sum of label maps.
        count: number of samples.
    """

    grams: dict[tuple[str, str], np.ndarray]
    nonfinite: dict[tuple[str, str], np.ndarray]
    labels: dict[str, np.ndarray]
    count: int

    @classmethod
    def read(cls, run: Run, accumulator: int, done: int) -> Accumulator:
        """Read the sums of an accumulator's first ``done`` units; zeros if ``done`` is 0."""
        index = {"accumulator": accumulator, "buffer": done % BUFFERS}

        def stored(group: str, name: str) -> np.ndarray:
            if done:
                return run.read(group, name, **index)
            array = run.open(group)[name]
            return np.zeros(array.shape[2:], array.dtype)

        groups = {
            (v, n): f"{STATISTICS_GROUP}/{v}/{n}" for v in _networks(run) for n in _layers(run, v)
        }
        return cls(
            {key: stored(group, "gram") for key, group in groups.items()},
            {key: stored(group, "nonfinite") for key, group in groups.items()},
            {p: stored(f"{STATISTICS_GROUP}/labels", p) for p in run.study.labels.maps},
            int(stored(f"{STATISTICS_GROUP}/labels", "count")),
        )

    def write(self, run: Run, accumulator: int, done: int) -> int:
        """Write the buffer that is active after this number of units; returns bytes."""
        buffer = done % BUFFERS
        region = {
            "accumulator": slice(accumulator, accumulator + 1),
            "buffer": slice(buffer, buffer + 1),
        }
        for (network, layer), gram in self.grams.items():
            sums = {"gram": gram, "nonfinite": self.nonfinite[network, layer]}
            values = {name: value[None, None] for name, value in sums.items()}
            run.write(f"{STATISTICS_GROUP}/{network}/{layer}", values, **region)
        maps = {name: value[None, None] for name, value in self.labels.items()}
        count = np.full((1, 1), self.count, np.int64)
        run.write(f"{STATISTICS_GROUP}/labels", maps | {"count": count}, **region)
        return sum(gram.nbytes for gram in self.grams.values())

    def add(
        self, activations: dict[str, Activations], labels: dict[str, np.ndarray], study: Study
    ) -> None:
        """Add a batch's training samples.

        A sample with a non-finite activation in a cell is excluded from that cell's sums.

        Args:
            activations: activations (sample, step, y, x, channel) by network.
            labels: property to full-size maps (sample, y, x); foreground is bool.
        """
        samples = np.arange(len(next(iter(labels.values()))))
        owners = {name: assign(samples, study.prompts.seed) for name, assign in ASSIGNMENTS.items()}
        tokens: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        for network, captured in activations.items():
            assignments = label_assignments(study, network)
            for layer, values in captured.values.items():
                bad = captured.nonfinite[layer]
                self.nonfinite[network, layer] += bad.sum(0, dtype=np.int64)
                grid = (values.shape[2], values.shape[3])
                for prop, maps in labels.items():
                    tokens.setdefault((prop, grid), block_means(maps, grid))
                for step, sums in enumerate(self.grams[network, layer]):
                    finite = np.flatnonzero(bad[:, step] == 0)
                    targets = [
                        tokens[p, grid][owners[d][finite]] for d in assignments for p in labels
                    ]
                    x = values[finite, step].reshape(-1, values.shape[-1])
                    y = np.stack(targets, axis=-1).reshape(-1, len(targets))
                    sums += packed(SufficientStatistics.from_tokens(x, y).gram)
        for prop, maps in labels.items():
            self.labels[prop] += maps.sum(0, dtype=np.float64)
        self.count += len(samples)


def packed(gram: np.ndarray) -> np.ndarray:
    """Lower triangle (entry,) of a symmetric matrix, row by row."""
    return gram[np.tril_indices(len(gram))]


def unpacked(entries: np.ndarray) -> np.ndarray:
    """Symmetric matrix (row, column) of a lower triangle (entry,); inverse of `packed`."""
    width = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    gram = np.zeros((width, width))
    gram[np.tril_indices(width)] = entries
    return np.where(np.tri(width, dtype=bool), gram, gram.T)


def require_accumulated(run: Run) -> None:
    """Refuse to continue while statistics are incomplete.

    Raises:
        RuntimeError: a training batch is not in them yet.
    """
    done = run.progress.counts(ACCUMULATE)
    for accumulator, units in enumerate(run_accumulation_units(run)):
        if done[accumulator] != len(units):
            raise RuntimeError(
                f"{run.url}: accumulator {accumulator} has {done[accumulator]} of its "
                f"{len(units)} units"
            )


def load_statistics(run: Run, network: str, step: int, layer: str) -> SufficientStatistics:
    """Sufficient statistics of one cell, summed over all accumulators; steps count from 1."""
    group = f"{STATISTICS_GROUP}/{network}/{layer}"
    gram = unpacked(_merged(run, group, "gram", step=step - 1))
    study = run.study
    labels = len(label_assignments(study, network)) * len(study.labels.maps)
    return SufficientStatistics(gram, len(gram) - 1 - labels)


def unstored_statistics(
    run: Run, network: str, step: int, layer: str
) -> SufficientStatistics | None:
    """Sufficient statistics of a cell, or None if the run stores activations."""
    if run.study.capture.keep != "statistics":
        return None
    return load_statistics(run, network, step, layer)


def mean_maps(run: Run) -> dict[str, np.ndarray]:
    """Mean label maps (y, x) of the training samples."""
    count = _merged(run, f"{STATISTICS_GROUP}/labels", "count")
    return {p: _merged(run, f"{STATISTICS_GROUP}/labels", p) / count for p in run.study.labels.maps}


def nonfinite_in(run: Run, network: str, layer: str) -> np.ndarray:
    """Number of values that are not finite in float16, over training samples, (step,) int64."""
    return _merged(run, f"{STATISTICS_GROUP}/{network}/{layer}", "nonfinite")


def _merged(run: Run, group: str, name: str, **index: int) -> np.ndarray:
    """Sum of every accumulator's active buffer, added pairwise to keep rounding errors small."""
    done = run.progress.counts(ACCUMULATE)
    parts = [
        run.read(group, name, accumulator=accumulator, buffer=int(units) % BUFFERS, **index)
        for accumulator, units in enumerate(done)
    ]
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def _networks(run: Run) -> tuple[str, ...]:
    return ("trained", "permuted") if run.study.controls.permuted_weights else ("trained",)


def _layers(run: Run, network: str) -> list[str]:
    return run.probe_inputs if network == "trained" else run.layers
