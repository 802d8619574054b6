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
"""Where the store keeps what the denoiser shows, and its twin with permuted weights."""

_BLOCK_BYTES = 16 << 20
"""Steps are written together until they hold so much: small layers gain by it, large ones do not
wait."""

_AHEAD = 2
"""Blocks that are handed over and not yet written, before generation waits for the store."""

_Pieces = dict[tuple[str, str], list[tuple[int, np.ndarray, np.ndarray]]]


@dataclass
class Activations:
    """What one denoiser showed: per layer (sample, step, y, x, channel) float16, and the counts of
    non-finite values (sample, step) int32."""

    values: dict[str, np.ndarray]
    nonfinite: dict[str, np.ndarray]


class ActivationBuffer:
    """Keeps a whole batch: (sample, step) of every layer, of the denoiser and of its twin."""

    def __init__(self) -> None:
        self._left: list[tuple[str, int, HostTransfer]] = []

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Keep what a network showed at a step, from 0."""
        self._left.append((network, step, transfer))

    def pop(self) -> dict[str, Activations]:
        """All of it, by network, and keep it no longer."""
        found: dict[str, Activations] = {}
        for (network, layer), pieces in _by_layer(self._left).items():
            made = found.setdefault(network, Activations({}, {}))
            made.values[layer] = np.stack([values for _, values, _ in pieces], axis=1)
            made.nonfinite[layer] = np.stack([bad for _, _, bad in pieces], axis=1)
        self._left = []
        return found


class ActivationWriter:
    """Writes a batch into a run while its next steps are computed; a context manager.

    Memory is bounded: one block fills, `_AHEAD` are handed over, and the one that is being written
    is there twice.

    Args:
        region: the batch's samples; whole chunks.

    Attributes:
        bytes: of activations, handed over so far.
    """

    def __init__(self, run: Run, region: slice) -> None:
        self.run, self.region = run, region
        self.bytes = 0
        self._block: list[tuple[str, int, HostTransfer]] = []
        self._filled = 0
        self._bad: dict[tuple[str, str], list[np.ndarray]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="into-store")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> ActivationWriter:
        return self

    def __call__(self, network: str, step: int, transfer: HostTransfer) -> None:
        """Take what a network showed at a step, from 0.

        Raises:
            Exception: of the write of an earlier block.
        """
        self._block.append((network, step, transfer))
        self._filled += transfer.nbytes
        if self._filled >= _BLOCK_BYTES:
            self._hand_over()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._writer:
            if kind is not None:
                self._writer.shutdown(cancel_futures=True)
                return
            self._hand_over()
            self._wait_for(0)
            for (network, layer), counts in self._bad.items():
                stacked = {"nonfinite": np.stack(counts, axis=1)}
                self.run.write(f"{ACTIVATION_GROUPS[network]}/{layer}", stacked, sample=self.region)

    def _hand_over(self) -> None:
        self._wait_for(_AHEAD - 1)
        self._under_way.append(self._writer.submit(self._write, self._block))
        self.bytes += self._filled
        self._block, self._filled = [], 0

    def _wait_for(self, left: int) -> None:
        """Wait until at most this number of blocks is being written."""
        while len(self._under_way) > left:
            self._under_way.popleft().result()

    def _write(self, block: list[tuple[str, int, HostTransfer]]) -> None:
        for (network, layer), pieces in _by_layer(block).items():
            steps = slice(pieces[0][0], pieces[-1][0] + 1)
            stacked = {"activation": np.stack([values for _, values, _ in pieces], axis=1)}
            self.run.write(
                f"{ACTIVATION_GROUPS[network]}/{layer}", stacked, sample=self.region, step=steps
            )
            self._bad.setdefault((network, layer), []).extend(bad for _, _, bad in pieces)


def peak_activation_bytes(step: int, steps: int) -> int:
    """The most bytes of activations that writing a batch holds at once.

    Args:
        step: bytes of one step of the batch, all networks together.
    """
    return min((2 + _AHEAD) * (_BLOCK_BYTES + step), 2 * steps * step)


def _by_layer(left: Iterable[tuple[str, int, HostTransfer]]) -> _Pieces:
    """By network and layer: its steps in order, each with its values and counts."""
    pieces: _Pieces = {}
    for network, step, transfer in left:
        for layer, (values, bad) in transfer.result().items():
            pieces.setdefault((network, layer), []).append((step, values, bad))
    return pieces
