"""Sums over training samples from which linear probes can be fitted without stored activations.

The sums (`ldmprobe_core.probing.statistics.SufficientStatistics`) are products of activations and
labels, and their size does not depend on the number of samples.  The activations of a batch are
added to the sums of each cell as soon as the batch is labeled, and are then discarded.

The training batches are divided among *accumulators*, and the batches of an accumulator among units
of work, which run in order.  An accumulator has two buffers in the store.  A unit reads the active
buffer, which includes all earlier units, adds its own batches, and writes the other buffer.  It
then records its progress, which makes the other buffer the active one.  A unit that is interrupted
and repeated is therefore counted only once, and no two workers write the same chunk.

The exception is a worker that is suspended while it writes, and given up as lost: if it continues
after others have added units, the buffer that it writes may be the active one.  Its chunks are
whole, but differ from the checksums that the last unit recorded, with which readers compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ldmprobe_core.errors import RunError
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.probing.position import token_positions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.bookkeeping import read_record, record_name
from ldmprobe_core.storage.nodes import dimensions, open_array, read_selection
from ldmprobe_core.storage.progress import GROUP
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import ACCUMULATE
from ldmprobe_core.study.batching import (
    BUFFERS,
    STATISTICS_GROUP,
    accumulation_units,
    n_positions,
    summed_columns,
)
from ldmprobe_core.study.layers import CLEAN_PIXELS
from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    # Imports for type checks only: the imported modules load torch, which reports do not need.
    import torch

    from ldmprobe_core.pipeline.activation_sinks import Activations
    from ldmprobe_core.probing.sums.device_sums import DeviceSums


def run_accumulation_units(run: Run) -> list[list[list[range]]]:
    """List the training batches (ranges of samples) of each accumulator, grouped into units.

    Returns:
        for each accumulator a list of units, and for each unit a list of batches as ranges of
        sample indices; empty if the run stores activations instead of statistics.
    """
    study = run.study
    if study.capture.keep == "activations":
        return []
    first = run.n_stored if study.capture.keep == "statistics" else 0
    return accumulation_units(study, first, run.open("samples").sizes["sample"])


@dataclass
class Accumulator:
    """Sums over training samples, in memory: Gram matrices of activations, and label maps.

    Attributes:
        grams: (network, layer) to float64 (step, entry), the lower triangle of the Gram matrix of
            each cell, row by row.
        by_position: (network, layer) to float64 (step, position, column), the sums at each position
            (`SufficientStatistics.by_position`).
        nonfinite: (network, layer) to int64 (step,), the number of activations that are NaN or
            infinite in float16.
        labels: property to float64 (y, x), the sum of the label maps.
        count: number of samples in the sums.
    """

    grams: dict[tuple[str, str], np.ndarray]
    by_position: dict[tuple[str, str], np.ndarray]
    nonfinite: dict[tuple[str, str], np.ndarray]
    labels: dict[str, np.ndarray]
    count: int

    @classmethod
    def read(cls, run: Run, accumulator: int, done: int) -> Accumulator:
        """Read the sums of an accumulator from a run.

        Args:
            run: run to read from.
            accumulator: index of the accumulator (from 0).
            done: number of its complete units; 0 gives sums of zero.

        Raises:
            CorruptChunkError: sums are damaged, or not those that the last unit wrote.
        """
        sums = _ActiveSums(run, accumulator, done)

        def stored(group: str, name: str) -> np.ndarray:
            if done:
                return sums.read(group, name)
            array = run.open(group)[name]
            return np.zeros(array.shape[2:], array.dtype)

        groups = {
            (v, n): f"{STATISTICS_GROUP}/{v}/{n}"
            for v in summed_networks(run)
            for n in summed_inputs(run, v)
        }
        return cls(
            {key: stored(group, "gram") for key, group in groups.items()},
            {key: stored(group, "by_position") for key, group in groups.items()},
            {key: stored(group, "nonfinite") for key, group in groups.items()},
            {p: stored(f"{STATISTICS_GROUP}/labels", p) for p in run.study.labels.maps},
            int(stored(f"{STATISTICS_GROUP}/labels", "count")),
        )

    def write(self, run: Run, accumulator: int, done: int) -> int:
        """Write the sums to the run, into the inactive one of the accumulator's two buffers.

        The buffer becomes active when the current unit is recorded as complete.

        Args:
            run: run to write to.
            accumulator: index of the accumulator (from 0).
            done: number of its complete units, including the current one.

        Returns:
            number of bytes of the Gram matrices and of the sums at each position.
        """
        buffer = done % BUFFERS
        region = {
            "accumulator": slice(accumulator, accumulator + 1),
            "buffer": slice(buffer, buffer + 1),
        }
        for (network, layer), gram in self.grams.items():
            sums = {
                "gram": gram,
                "by_position": self.by_position[network, layer],
                "nonfinite": self.nonfinite[network, layer],
            }
            values = {name: value[None, None] for name, value in sums.items()}
            run.write(f"{STATISTICS_GROUP}/{network}/{layer}", values, **region)
        maps = {name: value[None, None] for name, value in self.labels.items()}
        count = np.full((1, 1), self.count, np.int64)
        run.write(f"{STATISTICS_GROUP}/labels", maps | {"count": count}, **region)
        return sum(
            sums.nbytes for cells in (self.grams, self.by_position) for sums in cells.values()
        )

    def add(
        self,
        activations: dict[str, Activations],
        labels: dict[str, np.ndarray],
        study: Study,
        first: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Add the training samples of a batch to the sums.

        A sample with a NaN or infinite activation in a cell is left out of that cell's sums.

        Args:
            activations: activations of the samples, by network.
            first: index of the first sample in the study, which seeds the batch's permutations.
            labels: property to label maps (sample, y, x) at the size of the images; bool for masks.
            study: study that the samples belong to.
            device: GPU that computes the sums; None or a CPU computes here, with other last bits.
        """
        count = len(next(iter(labels.values())))
        on_device = _device_sums(device)
        tokens: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        for network, captured in activations.items():
            columns = summed_columns(study, network)
            samples = np.arange(count) if captured.samples is None else captured.samples
            owners = [column.owners(samples, study.prompts.seed + first) for column in columns]
            for layer, stored in captured.values.items():
                bad = captured.nonfinite[layer]
                self.nonfinite[network, layer] += bad.sum(0, dtype=np.int64)
                grid = (stored.shape[2], stored.shape[3])
                positions = token_positions(grid)
                for prop, maps in labels.items():
                    if (prop, grid) not in tokens:
                        tokens[prop, grid] = block_means(maps, grid)
                for step, sums in enumerate(self.grams[network, layer]):
                    finite = np.flatnonzero(bad[:, step] == 0)
                    targets = [
                        tokens[column.prop, grid][owner[finite]]
                        for column, owner in zip(columns, owners, strict=True)
                    ]
                    values = probe_features(layer, stored[finite, step])
                    x = values.reshape(-1, values.shape[-1])
                    y = np.stack(targets, axis=-1).reshape(-1, len(targets))
                    added = SufficientStatistics.from_tokens(
                        x,
                        y,
                        None,
                        np.resize(positions, len(x)),
                        n_positions(grid),
                        on_device,
                    )
                    sums += packed(added.gram)
                    self.by_position[network, layer][step] += added.by_position
        for prop, maps in labels.items():
            self.labels[prop] += maps.sum(0, dtype=np.float64)
        self.count += count


def _device_sums(device: torch.device | None) -> DeviceSums | None:
    """Return sums that a GPU computes; None if there is none."""
    if device is None or device.type == "cpu":
        return None
    from ldmprobe_core.probing.sums.device_sums import DeviceSums

    return DeviceSums(device)


def packed(gram: np.ndarray) -> np.ndarray:
    """Return the lower triangle of a symmetric matrix as a vector (entry,), row by row."""
    return gram[np.tril_indices(len(gram))]


def unpacked(entries: np.ndarray) -> np.ndarray:
    """Rebuild a symmetric matrix (row, column) from its lower triangle; the inverse of `packed`."""
    width = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    gram = np.zeros((width, width))
    gram[np.tril_indices(width)] = entries
    return np.where(np.tri(width, dtype=bool), gram, gram.T)


def require_accumulated(run: Run) -> None:
    """Check that all units that add training samples to the run's statistics are complete.

    Raises:
        RunError: an accumulator has units that are not complete.
    """
    done = run.progress.counts(ACCUMULATE)
    for accumulator, units in enumerate(run_accumulation_units(run)):
        if done[accumulator] != len(units):
            raise RunError(
                f"{run.url}: accumulator {accumulator} has completed {done[accumulator]} of "
                f"its {len(units)} units. Fix: run `ldmprobe verify {run.url} --redo`, then the "
                "study again, which carries out the remaining units"
            )


def load_statistics(run: Run, network: str, step: int, layer: str) -> SufficientStatistics:
    """Read the sufficient statistics of one layer at one step, summed over all accumulators.

    Args:
        run: run whose accumulation units are complete.
        network: ``trained`` or ``permuted``.
        step: sampler step (from 1).
        layer: name of the layer.

    Raises:
        CorruptChunkError: sums are damaged, or not those that the accumulator's last unit wrote.
    """
    group, active = f"{STATISTICS_GROUP}/{network}/{layer}", _active_sums(run)
    gram = unpacked(_merged(active, group, "gram", step=step - 1))
    by_position = _merged(active, group, "by_position", step=step - 1)
    channels = len(gram) - 1 - len(summed_columns(run.study, network))
    return SufficientStatistics(gram, channels, by_position)


def unstored_statistics(
    run: Run, network: str, step: int, layer: str
) -> SufficientStatistics | None:
    """Read the sums of training samples; None if the run stores their activations instead.

    For the arguments see `load_statistics`.
    """
    if run.study.capture.keep != "statistics":
        return None
    return load_statistics(run, network, step, layer)


def mean_maps(run: Run) -> dict[str, np.ndarray]:
    """Compute the mean label maps of the training samples, float64 (y, x) by property."""
    group, active = f"{STATISTICS_GROUP}/labels", _active_sums(run)
    count = _merged(active, group, "count")
    return {prop: _merged(active, group, prop) / count for prop in run.study.labels.maps}


def nonfinite_in(run: Run, network: str, layer: str) -> np.ndarray:
    """Count the NaN and infinite training activations of each step; return int64 (step,)."""
    return _merged(_active_sums(run), f"{STATISTICS_GROUP}/{network}/{layer}", "nonfinite")


class _ActiveSums:
    """Reader of an accumulator's active buffer, which compares it with the recorded checksums.

    Args:
        run: run to read from.
        accumulator: index of the accumulator (from 0).
        done: number of its complete units.
    """

    def __init__(self, run: Run, accumulator: int, done: int) -> None:
        try:
            name = record_name(f"{GROUP}/{ACCUMULATE.progress}", (accumulator,))
            recorded = read_record(run.location, name)
        except ValueError:
            # Runs of early versions have no checksums, and `ldmprobe verify` names a damaged file.
            recorded = {}
        self._run, self._store = run, run.zarr_store(require_complete=True, recorded=recorded)
        self._index = {"accumulator": accumulator, "buffer": done % BUFFERS}

    def read(self, group: str, name: str, **index: int) -> np.ndarray:
        """Read an array's sums, at positions along further dimensions."""
        array = open_array(self._store, self._run.url, f"{group}/{name}")
        where = self._index | index
        selection = tuple(where.get(dim, slice(None)) for dim in dimensions(array))
        return read_selection(array, selection, in_turn=not self._run.location.remote)


def _active_sums(run: Run) -> list[_ActiveSums]:
    """Return a reader for each accumulator of a run."""
    done = run.progress.counts(ACCUMULATE)
    return [_ActiveSums(run, accumulator, int(units)) for accumulator, units in enumerate(done)]


def _merged(active: list[_ActiveSums], group: str, name: str, **index: int) -> np.ndarray:
    """Sum an array over the active buffers of all accumulators, pairwise to limit rounding errors.

    Args:
        active: readers of the accumulators.
        group: path of the group that holds the array.
        name: name of the array.
        index: position along further dimensions of the array.
    """
    parts = [sums.read(group, name, **index) for sums in active]
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def summed_networks(run: Run) -> tuple[str, ...]:
    """Return the networks for which a run keeps sums of training activations."""
    return ("trained", "permuted") if run.study.controls.untrained else ("trained",)


def summed_inputs(run: Run, network: str) -> list[str]:
    """Return the probe inputs for which a run keeps sums of training activations.

    The clean image's pixels are left out, because few training samples have step images.
    """
    if network != "trained":
        return run.layers
    return [name for name in run.probe_inputs if name != CLEAN_PIXELS]
