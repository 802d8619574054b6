"""What becomes of a batch's activations: into the store as they come, or into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from ldmprobe_core.models.host_transfer import Leaving
from ldmprobe_core.storage.run import Run

GROUPS = {"real": "activations", "permuted": "permuted"}
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


class InMemory:
    """Keeps a whole batch: (sample, step) of every layer, of the denoiser and of its twin."""

    def __init__(self) -> None:
        self._left: list[tuple[str, int, Leaving]] = []

    def __call__(self, variant: str, step: int, leaving: Leaving) -> None:
        """Keep what a network showed at a step, from 0."""
        self._left.append((variant, step, leaving))

    def take(self) -> dict[str, Activations]:
        """All of it, by variant, and keep it no longer."""
        found: dict[str, Activations] = {}
        for (variant, layer), pieces in _sorted_out(self._left).items():
            made = found.setdefault(variant, Activations({}, {}))
            made.values[layer] = np.stack([values for _, values, _ in pieces], axis=1)
            made.nonfinite[layer] = np.stack([bad for _, _, bad in pieces], axis=1)
        self._left = []
        return found


class IntoStore:
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
        self._block: list[tuple[str, int, Leaving]] = []
        self._filled = 0
        self._bad: dict[tuple[str, str], list[np.ndarray]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="into-store")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> IntoStore:
        return self

    def __call__(self, variant: str, step: int, leaving: Leaving) -> None:
        """Take what a network showed at a step, from 0.

        Raises:
            whatever writing an earlier block raised.
        """
        self._block.append((variant, step, leaving))
        self._filled += leaving.nbytes
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
            for (variant, layer), counts in self._bad.items():
                stacked = {"nonfinite": np.stack(counts, axis=1)}
                self.run.write(f"{GROUPS[variant]}/{layer}", stacked, sample=self.region)

    def _hand_over(self) -> None:
        self._wait_for(_AHEAD - 1)
        self._under_way.append(self._writer.submit(self._write, self._block))
        self.bytes += self._filled
        self._block, self._filled = [], 0

    def _wait_for(self, left: int) -> None:
        """Wait until no more than so many blocks are under way."""
        while len(self._under_way) > left:
            self._under_way.popleft().result()

    def _write(self, block: list[tuple[str, int, Leaving]]) -> None:
        for (variant, layer), pieces in _sorted_out(block).items():
            steps = slice(pieces[0][0], pieces[-1][0] + 1)
            stacked = {"activation": np.stack([values for _, values, _ in pieces], axis=1)}
            self.run.write(f"{GROUPS[variant]}/{layer}", stacked, sample=self.region, step=steps)
            self._bad.setdefault((variant, layer), []).extend(bad for _, _, bad in pieces)


def bytes_at_once(step: int, steps: int) -> int:
    """The most bytes of activations that writing a batch holds at once.

    Args:
        step: bytes of one step of the batch, all networks together.
    """
    return min((2 + _AHEAD) * (_BLOCK_BYTES + step), 2 * steps * step)


def _sorted_out(left: Iterable[tuple[str, int, Leaving]]) -> _Pieces:
    """By variant and layer: its steps in order, each with its values and counts."""
    pieces: _Pieces = {}
    for variant, step, leaving in left:
        for layer, (values, bad) in leaving.arrive().items():
            pieces.setdefault((variant, layer), []).append((step, values, bad))
    return pieces
