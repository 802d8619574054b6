"""Sinks for captured activations: an asynchronous store writer and an in-memory buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.storage.run import Run

ACTIVATION_GROUPS = {"trained": "activations", "permuted": "activations_permuted"}
"""Group of a run that holds the activations of each network: its weights trained or permuted."""

BLOCK_BYTES = 16 << 20
"""Size at which a block of steps is written: one write holds many steps of small layers."""

_AHEAD = 2
"""Most blocks that wait to be written before generation waits for the store."""

_Pieces = dict[tuple[str, str], list[tuple[int, np.ndarray, np.ndarray]]]


@dataclass
class Activations:
    """Captured activations of one network.

    Attributes:
        values: layer to (sample, step, y, x, channel) float16.
        nonfinite: layer to (sample, step) int32, counts of values that are not finite.
    """

    values: dict[str, np.ndarray]
    nonfinite: dict[str, np.ndarray]


class ActivationBuffer:
    """Sink that holds all activations of a batch in memory, of every network and layer."""

    def __init__(self) -> None:
        self._transfers: list[tuple[str, int, HostTransfer]] = []

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Keep the activations of a network at a step, from 0."""
        self._transfers.append((network, step, transfer))

    def pop(self) -> dict[str, Activations]:
        """Remove and return all activations, by network."""
        activations: dict[str, Activations] = {}
        for (network, layer), pieces in _by_layer(self._transfers).items():
            captured = activations.setdefault(network, Activations({}, {}))
            captured.values[layer] = np.stack([values for _, values, _ in pieces], axis=1)
            captured.nonfinite[layer] = np.stack([bad for _, _, bad in pieces], axis=1)
        self._transfers = []
        return activations


class ActivationWriter:
    """Sink that writes a batch into a run while its next steps are computed; a context manager.

    Peak memory: one filling block, `_AHEAD` queued, and two copies of the block being written.

    Args:
        region: sample indices of the batch; whole chunks.

    Attributes:
        bytes: of the activations that were queued so far.
    """

    def __init__(self, run: Run, region: slice) -> None:
        self.run, self.region = run, region
        self.bytes = 0
        self._block: list[tuple[str, int, HostTransfer]] = []
        self._filled = 0
        self._bad: dict[tuple[str, str], list[np.ndarray]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="into-store")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ActivationWriter:
        return self

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Queue the activations of a network at a step, from 0.

        Raises:
            Exception: of the write of an earlier block.
        """
        self._block.append((network, step, transfer))
        self._filled += transfer.nbytes
        if self._filled >= BLOCK_BYTES:
            self._submit_block()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._writer:
            if kind is not None:
                self._writer.shutdown(cancel_futures=True)
                return
            self._submit_block()
            self._wait_for(0)
            for (network, layer), counts in self._bad.items():
                stacked = {"nonfinite": np.stack(counts, axis=1)}
                self.run.write(f"{ACTIVATION_GROUPS[network]}/{layer}", stacked, sample=self.region)

    def _submit_block(self) -> None:
        self._wait_for(_AHEAD - 1)
        self._pending.append(self._writer.submit(self._write, self._block))
        self.bytes += self._filled
        self._block, self._filled = [], 0

    def _wait_for(self, pending: int) -> None:
        """Wait until at most ``pending`` blocks are queued or being written."""
        while len(self._pending) > pending:
            self._pending.popleft().result()

    def _write(self, block: list[tuple[str, int, HostTransfer]]) -> None:
        for (network, layer), pieces in _by_layer(block).items():
            steps = slice(pieces[0][0], pieces[-1][0] + 1)
            stacked = {"activation": np.stack([values for _, values, _ in pieces], axis=1)}
            self.run.write(
                f"{ACTIVATION_GROUPS[network]}/{layer}", stacked, sample=self.region, step=steps
            )
            self._bad.setdefault((network, layer), []).extend(bad for _, _, bad in pieces)


def peak_activation_bytes(step: int, steps: int) -> int:
    """Peak bytes of activations in memory while a batch is written.

    Args:
        step: bytes of one step of the batch, all networks together.
        steps: number of steps.
    """
    return min((2 + _AHEAD) * (BLOCK_BYTES + step), 2 * steps * step)


def _by_layer(transfers: Iterable[tuple[str, int, HostTransfer]]) -> _Pieces:
    """Group by network and layer: steps in order, each with its values and counts."""
    pieces: _Pieces = {}
    for network, step, transfer in transfers:
        for layer, (values, bad) in transfer.result().items():
            pieces.setdefault((network, layer), []).append((step, values, bad))
    return pieces
