"""Shuffled streams of the tokens of a run, for training sparse autoencoders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ldmprobe_core.errors import UserError, counted
from ldmprobe_core.storage.nodes import open_array
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.splits import SPLITS


class TokenStream(IterableDataset):
    """Stream of batches (token, channel) of a layer's stored activations, in random order.

    An epoch gives each token once.  It reads the stored chunks in random order and mixes their
    tokens in a buffer, so that memory is bounded by the buffer's size plus one chunk and one batch.
    Each worker of a `torch.utils.data.DataLoader` reads its own share of the chunks.  Pass
    ``batch_size=None`` to the loader, because the stream itself makes batches; the last batch of
    each worker may be smaller.  The order is a function of the seed, the epoch and the number of
    workers.

    Attributes:
        channels: number of channels of a token.
        tokens: number of tokens in an epoch.

    See `ldmprobe.Run.tokens` for the arguments.
    """

    def __init__(
        self,
        run: Run,
        layer: str,
        steps: Sequence[int] | None = None,
        split: str = "train",
        batch: int = 4096,
        seed: int = 0,
        buffer: int = 65_536,
    ) -> None:
        _check_sizes(batch, seed, buffer)
        self.batch, self.seed, self.buffer = batch, seed, buffer
        # Each worker of the data loader gets a copy of the stream, and opens the run by its
        # address.
        self.url, self.path = run.url, f"activations/{layer}"
        samples = _samples_of(run, split)
        array = open_array(run.store, run.url, f"{self.path}/activation")
        rows = _step_rows(array.shape[1], steps)
        self.height, self.width, self.channels = array.shape[2:]
        self.chunk_samples = array.chunks[0]
        _require_generated(run, samples)
        # Leave out a sample at a step if its activations are not all finite, as in fits of probes.
        finite = run.read(self.path, "nonfinite") == 0
        self.chosen = np.zeros_like(finite)
        self.chosen[np.ix_(samples, rows)] = finite[np.ix_(samples, rows)]
        self.tokens = int(self.chosen.sum()) * self.height * self.width
        # Workers that live for several epochs read the number of the epoch from shared memory.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, which determines the random order of the next iteration."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch = int(self._epoch)
        # All workers draw the same order of chunks, and each worker reads a part of the chunks.
        order = np.random.default_rng([self.seed, epoch])
        chunks = order.permutation(self._chunks())[number::workers]
        rng = np.random.default_rng([self.seed, epoch, number + 1])
        pieces = shuffle_in_buffer(self._read(chunks), self.buffer, self.batch, rng)
        for values in cut_batches(pieces, self.batch):
            yield torch.from_numpy(values.astype(np.float32))

    def _chunks(self) -> np.ndarray:
        """List the chunks with chosen tokens, each as (index along samples, index along steps)."""
        starts = range(0, len(self.chosen), self.chunk_samples)
        return np.argwhere(np.logical_or.reduceat(self.chosen, starts, axis=0))

    def _read(self, chunks: np.ndarray) -> Iterator[np.ndarray]:
        """Read the chosen tokens (token, channel) of each chunk; a lost chunk raises an error."""
        store = Run(self.url).zarr_store(require_complete=True)
        array = open_array(store, self.url, f"{self.path}/activation")
        for number, row in chunks:
            part = slice(number * self.chunk_samples, (number + 1) * self.chunk_samples)
            values = np.asarray(array[part, row])
            yield values[self.chosen[part, row]].reshape(-1, self.channels)


def shuffle_in_buffer(
    chunks: Iterable[np.ndarray], buffer: int, batch: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Shuffle rows in a buffer: each new row replaces a random row, which is then yielded.

    Args:
        chunks: arrays (row, column), which are read one at a time.
        buffer: number of rows that the buffer holds.
        batch: largest number of rows that leave the buffer at once, at most `buffer`.
        rng: generator that decides the order.

    Returns:
        arrays (row, column) of at most `batch` rows, which hold every row once.
    """
    pool, filled = np.empty((0, 0)), 0
    for chunk in chunks:
        if not filled:
            pool = np.empty((buffer, chunk.shape[1]), chunk.dtype)
        rows = chunk[rng.permutation(len(chunk))]
        room = min(len(rows), buffer - filled)
        pool[filled : filled + room] = rows[:room]
        filled += room
        for start in range(room, len(rows), batch):
            arriving = rows[start : start + batch]
            slots = rng.choice(buffer, len(arriving), replace=False)
            yield pool[slots]
            pool[slots] = arriving
    order = rng.permutation(filled)
    for start in range(0, filled, batch):
        yield pool[order[start : start + batch]]


def cut_batches(pieces: Iterable[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """Join arrays of at most `batch` rows into batches of `batch` rows; the last is shorter."""
    waiting: list[np.ndarray] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= batch:
            joined = np.concatenate(waiting)
            yield joined[:batch]
            waiting = [joined[batch:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def _samples_of(run: Run, split: str) -> list[int]:
    """List the indices of the stored samples of a split."""
    if split not in SPLITS:
        raise UserError(
            f"split: there is no such split ({split}). Fix: choose one of {', '.join(SPLITS)}"
        )
    samples = [s.index for s in run.samples[: run.n_stored] if s.split == split]
    if not samples:
        raise UserError(
            f"split: the run stores no activations of these samples ({split}), only sums over "
            "them. Fix: choose validation or test, or run the study with capture.keep: both"
        )
    return samples


def _step_rows(last: int, steps: Sequence[int] | None) -> list[int]:
    """Return the indices of the chosen steps along the dimension ``step``."""
    every = range(1, last + 1)
    chosen = every if steps is None else steps
    is_list = isinstance(chosen, (Sequence, np.ndarray)) and np.ndim(chosen) == 1
    if (
        not is_list
        or not len(chosen)
        or len(set(chosen)) < len(chosen)
        or not {*chosen} <= {*every}
    ):
        raise UserError(
            f"steps: not a list of distinct steps of the run ({steps!r:.60}). Fix: choose steps "
            f"from 1 to {last}"
        )
    return [int(step) - 1 for step in chosen]


def _check_sizes(batch: int, seed: int, buffer: int) -> None:
    """Raise `UserError` if the batch, the buffer or the seed is no whole number or too small."""
    for name, value in (("batch", batch), ("seed", seed), ("buffer", buffer)):
        if not isinstance(value, (int, np.integer)):
            raise UserError(
                f"{name}: {value!r:.40} is not a whole number. Fix: give a whole number"
            )
    if batch < 1:
        raise UserError(f"batch: it has no tokens ({batch}). Fix: give at least 1")
    if buffer < batch:
        raise UserError(
            f"buffer: it is smaller than a batch of {batch} tokens ({buffer}). Fix: give at least "
            f"{batch}; for good shuffling, ten times as many or more"
        )
    if seed < 0:
        raise UserError(f"seed: it is negative ({seed}). Fix: give a number from 0 on")


def _require_generated(run: Run, samples: Sequence[int]) -> None:
    """Raise `UserError` if the activations of some samples are not generated yet."""
    done = run.progress.completed("generated")
    missing = {index // run.study.sampling.batch for index in samples} - set(np.flatnonzero(done))
    if missing:
        raise UserError(
            "run: activations of these samples are not generated yet "
            f"({counted(len(missing), 'batch')}). Fix: resume the run until they are"
        )
