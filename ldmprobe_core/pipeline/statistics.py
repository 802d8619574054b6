"""Statistics instead of activations: sums that grow with channels, never with samples.

A training batch's activations are held in memory until its labels exist, then they are added to
sums of products (`ldmprobe_core.probing.statistics.Moments`), cell by cell, and let go.  Training
batches are dealt to *parts*, each added up by one worker at a time, a few batches a unit of work.
A part has two slots in the store: a unit reads the one that holds all units before it, adds its
batches, and fills the other; its mark, written last, says which one counts.  So a unit that was cut
off, or is tried again, is counted once, and no two workers share a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.pipeline.activation_sinks import Activations
from ldmprobe_core.probing.baselines import shuffle_within
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.statistics import Moments
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import GROUP, SLOTS, deals_of, units_of
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.schema import Study


def units_in(run: Run) -> list[list[list[range]]]:
    """A run's training batches, by part and unit; none where it keeps no statistics."""
    study = run.study()
    if study.capture.store == "activations":
        return []
    first = run.stored if study.capture.store == "statistics" else 0
    return units_of(study, first, run.open("samples").sizes["sample"])


@dataclass
class Tally:
    """Sums over training samples.

    Attributes:
        grams: variant and layer to (step, entry) float64, the lower triangles of cells' sums.
        nonfinite: variant and layer to (step,) int64, values that are not finite in float16.
        labels: property to (y, x) float64, the sum of label maps.
        count: samples.
    """

    grams: dict[tuple[str, str], np.ndarray]
    nonfinite: dict[tuple[str, str], np.ndarray]
    labels: dict[str, np.ndarray]
    count: int

    @classmethod
    def read(cls, run: Run, part: int, done: int) -> Tally:
        """What a part's first units added up to, zero after none."""
        where = {"part": part, "slot": done % SLOTS}

        def stored(group: str, name: str) -> np.ndarray:
            if done:
                return run.read(group, name, **where)
            array = run.open(group)[name]
            return np.zeros(array.shape[2:], array.dtype)

        groups = {(v, n): f"{GROUP}/{v}/{n}" for v in _variants(run) for n in _layers(run, v)}
        return cls(
            {key: stored(group, "gram") for key, group in groups.items()},
            {key: stored(group, "nonfinite") for key, group in groups.items()},
            {p: stored(f"{GROUP}/labels", p) for p in run.study().labels.maps},
            int(stored(f"{GROUP}/labels", "count")),
        )

    def write(self, run: Run, part: int, done: int) -> int:
        """Fill the slot that counts after so many units; returns the bytes."""
        slot = done % SLOTS
        where = {"part": slice(part, part + 1), "slot": slice(slot, slot + 1)}
        for (variant, layer), gram in self.grams.items():
            sums = {"gram": gram, "nonfinite": self.nonfinite[variant, layer]}
            values = {name: value[None, None] for name, value in sums.items()}
            run.write(f"{GROUP}/{variant}/{layer}", values, **where)
        maps = {name: value[None, None] for name, value in self.labels.items()}
        count = np.full((1, 1), self.count, np.int64)
        run.write(f"{GROUP}/labels", maps | {"count": count}, **where)
        return sum(gram.nbytes for gram in self.grams.values())

    def add(
        self, shown: dict[str, Activations], labels: dict[str, np.ndarray], study: Study
    ) -> None:
        """Add a batch's training samples.

        A sample with a non-finite activation in a cell takes no part in that cell.

        Args:
            shown: of each variant, activations (sample, step, y, x, channel).
            labels: property to full-size maps (sample, y, x); foreground is bool.
        """
        samples = np.arange(len(next(iter(labels.values()))))
        owners = {"real": samples, "shuffled": shuffle_within(samples, study.prompts.seed)}
        tokens: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        for variant, made in shown.items():
            deals = deals_of(study, variant)
            for layer, values in made.values.items():
                bad = made.nonfinite[layer]
                self.nonfinite[variant, layer] += bad.sum(0, dtype=np.int64)
                grid = (values.shape[2], values.shape[3])
                for prop, maps in labels.items():
                    tokens.setdefault((prop, grid), block_means(maps, grid))
                for step, sums in enumerate(self.grams[variant, layer]):
                    finite = np.flatnonzero(bad[:, step] == 0)
                    targets = [tokens[p, grid][owners[d][finite]] for d in deals for p in labels]
                    x = values[finite, step].reshape(-1, values.shape[-1])
                    y = np.stack(targets, axis=-1).reshape(-1, len(targets))
                    sums += packed(Moments.of(x, y).gram)
        for prop, maps in labels.items():
            self.labels[prop] += maps.sum(0, dtype=np.float64)
        self.count += len(samples)


def packed(gram: np.ndarray) -> np.ndarray:
    """The lower triangle of a symmetric matrix, row by row."""
    return gram[np.tril_indices(len(gram))]


def unpacked(entries: np.ndarray) -> np.ndarray:
    """The symmetric matrix of a lower triangle."""
    width = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    gram = np.zeros((width, width))
    gram[np.tril_indices(width)] = entries
    return np.where(np.tri(width, dtype=bool), gram, gram.T)


def require_tallied(run: Run) -> None:
    """Refuse to go on from sums that are not complete.

    Raises:
        RuntimeError: some training batch is not in them.
    """
    done = run.counts("tallied")
    for part, units in enumerate(units_in(run)):
        if done[part] != len(units):
            raise RuntimeError(
                f"{run.url}: part {part} of its statistics has {done[part]} of {len(units)} units"
            )


def moments_of(run: Run, variant: str, step: int, layer: str) -> Moments:
    """The sums of one cell over all parts; steps count from 1."""
    group = f"{GROUP}/{variant}/{layer}"
    gram = unpacked(_merged(run, group, "gram", step=step - 1))
    study = run.study()
    labels = len(deals_of(study, variant)) * len(study.labels.maps)
    return Moments(gram, len(gram) - 1 - labels)


def sums_of(run: Run, variant: str, step: int, layer: str) -> Moments | None:
    """What a cell's training samples left where they are not stored; None where they are."""
    if run.study().capture.store != "statistics":
        return None
    return moments_of(run, variant, step, layer)


def mean_maps(run: Run) -> dict[str, np.ndarray]:
    """Mean label maps (y, x) of the training samples."""
    count = _merged(run, f"{GROUP}/labels", "count")
    return {p: _merged(run, f"{GROUP}/labels", p) / count for p in run.study().labels.maps}


def nonfinite_in(run: Run, variant: str) -> int:
    """Values that are not finite in float16, over all training samples."""
    layers = [name for name in _layers(run, variant) if name != LATENTS]
    return sum(int(_merged(run, f"{GROUP}/{variant}/{n}", "nonfinite").sum()) for n in layers)


def _merged(run: Run, group: str, name: str, **where: int) -> np.ndarray:
    """The sum of what counts of every part, added pairwise, which keeps rounding small."""
    done = run.counts("tallied")
    parts = [
        run.read(group, name, part=part, slot=int(units) % SLOTS, **where)
        for part, units in enumerate(done)
    ]
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def _variants(run: Run) -> tuple[str, ...]:
    return ("real", "permuted") if run.study().controls.permuted else ("real",)


def _layers(run: Run, variant: str) -> list[str]:
    return run.probed if variant == "real" else run.layers
