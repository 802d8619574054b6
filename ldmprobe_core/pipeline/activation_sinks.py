"""Receivers of captured activations, which keep them in memory or write them to the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS
from ldmprobe_core.storage.run import Run

BLOCK_BYTES = 16 << 20
"""Number of bytes of activations that are collected before they are written.

Many steps of small layers are thus written at once, since each write has a fixed cost.
"""

_AHEAD = 2
"""Largest number of blocks that are queued or being written; at this number, generation waits."""

_SMALL_WRITES = 4
"""Number of small arrays that are written at once: with an object store, each waits for answers."""

_Pieces = dict[tuple[str, str], list[tuple[int, np.ndarray, np.ndarray]]]


@dataclass
class Activations:
    """Captured activations of one network (trained or permuted weights) for one batch.

    Attributes:
        values: layer name to activations, float16 (sample, step, y, x, channel).
        nonfinite: layer name to the number of NaN or infinite values, int32 (sample, step).
        samples: positions of these samples in the batch, (sample,); None if they are all of it.
    """

    values: dict[str, np.ndarray]
    nonfinite: dict[str, np.ndarray]
    samples: np.ndarray | None = None


class ActivationBuffer:
    """Receiver that collects all activations of one batch in memory."""

    def __init__(self) -> None:
        self._transfers: list[tuple[str, int, HostTransfer]] = []

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Add the activations of one network at one step (from 0)."""
        self._transfers.append((network, step, transfer))

    def pop(self) -> dict[str, Activations]:
        """Return the collected activations by network, and clear the buffer."""
        activations: dict[str, Activations] = {}
        for (network, layer), pieces in _by_layer(self._transfers).items():
            captured = activations.setdefault(network, Activations({}, {}))
            captured.values[layer] = np.stack([values for _, values, _ in pieces], axis=1)
            captured.nonfinite[layer] = np.stack([bad for _, _, bad in pieces], axis=1)
        self._transfers = []
        return activations


class ActivationWriter:
    """Receiver that writes the activations of one batch to a run, in a background thread.

    Use it as a context manager: all activations are written when its block ends without an error.
    See `peak_activation_bytes` for its use of memory.

    Args:
        run: run to write to.
        region: range of the batch's sample indices; it must consist of whole chunks.
        permuted: the batch's range in the groups of the permuted denoiser, if it differs.
        steps: number of sampler steps, if it is known.  The activations of the last one are then
            written while the images are decoded.

    Attributes:
        bytes: number of bytes of activations submitted for writing so far.
    """

    def __init__(
        self,
        run: Run,
        region: slice,
        permuted: slice | None = None,
        steps: int | None = None,
    ) -> None:
        self.run, self._steps = run, steps
        self._regions = {"trained": region, "permuted": permuted or region}
        self.bytes = 0
        self._block: list[tuple[str, int, HostTransfer]] = []
        self._filled = 0
        self._bad: dict[tuple[str, str], list[np.ndarray]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="into-store")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ActivationWriter:
        return self

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Queue the activations of one network at one step (from 0) for writing.

        Raises:
            Exception: the write of an earlier block failed; its exception is raised here.
        """
        self._block.append((network, step, transfer))
        self._filled += transfer.nbytes
        if self._filled >= BLOCK_BYTES:
            self._submit_block(_AHEAD)
        elif step + 1 == self._steps:
            # Do not wait here: all parts of the last step together are as large as the block that
            # would be filling, whose size `peak_activation_bytes` includes.
            self._submit_block(None)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._writer:
            if kind is not None:
                self._writer.shutdown(cancel_futures=True)
                return
            self._submit_block(_AHEAD)
            self._wait_for(0)
            with ThreadPoolExecutor(_SMALL_WRITES) as pool:
                for done in [pool.submit(self._write_counts, *key) for key in self._bad]:
                    done.result()

    def _submit_block(self, ahead: int | None) -> None:
        """Queue the current block of activations for the writing thread, and start a new block.

        Args:
            ahead: largest number of blocks in the queue, for which this method waits; None does not
                wait.
        """
        if not self._block:
            return
        if ahead is not None:
            self._wait_for(ahead - 1)
        self._pending.append(self._writer.submit(self._write, self._block))
        self.bytes += self._filled
        self._block, self._filled = [], 0

    def _wait_for(self, pending: int) -> None:
        """Wait until at most `pending` blocks of activations are queued or being written."""
        while len(self._pending) > pending:
            self._pending.popleft().result()

    def _write(self, block: list[tuple[str, int, HostTransfer]]) -> None:
        """Write the activations of one block to the run; runs in the background thread."""
        for (network, layer), pieces in _by_layer(block).items():
            steps = slice(pieces[0][0], pieces[-1][0] + 1)
            stacked = {"activation": np.stack([values for _, values, _ in pieces], axis=1)}
            group, region = f"{ACTIVATION_GROUPS[network]}/{layer}", self._regions[network]
            self.run.write(group, stacked, sample=region, step=steps)
            self._bad.setdefault((network, layer), []).extend(bad for _, _, bad in pieces)

    def _write_counts(self, network: str, layer: str) -> None:
        """Write one layer's counts of non-finite values at all steps."""
        stacked = {"nonfinite": np.stack(self._bad[network, layer], axis=1)}
        group, region = f"{ACTIVATION_GROUPS[network]}/{layer}", self._regions[network]
        self.run.write(group, stacked, sample=region)


def peak_activation_bytes(step: int, steps: int) -> int:
    """Estimate the peak memory in bytes of an `ActivationWriter` for one batch's activations.

    It holds one block that is filling, `_AHEAD` blocks in the queue, and a second copy of the block
    that is being written.

    Args:
        step: bytes of the activations of one step of a batch, for all networks together.
        steps: number of sampler steps.
    """
    return min((2 + _AHEAD) * (BLOCK_BYTES + step), 2 * steps * step)


def _by_layer(transfers: Iterable[tuple[str, int, HostTransfer]]) -> _Pieces:
    """Wait for activations to arrive on the host, and group them by (network, layer).

    Returns:
        (network, layer) to a list of (step, activations, counts of non-finite values), in the order
        of the steps.
    """
    pieces: _Pieces = {}
    for network, step, transfer in transfers:
        for layer, (values, bad) in transfer.result().items():
            pieces.setdefault((network, layer), []).append((step, values, bad))
    return pieces
