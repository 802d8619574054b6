"""Joint scores of a vector property's components, such as the angle between two surface normals.

Each component is a property of its own, with probes and controls.  Their predictions together are a
vector at each token, which is compared with the vectors of the labels.  Vectors are compared by
direction alone: both are divided by their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.controls.records import VectorExact, VectorRecord, VectorScore
from ldmprobe_core.analysis.generalization.build import stored_probes
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.probe import read_cell
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of, vectors_of


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors (..., component) by their lengths; NaN for a vector of no length."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, np.nan))


def mean_cosine(tokens: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average the cosine between predicted and true directions over the pixels of each map, (n,).

    A prediction holds for all pixels of its token's block.  The mean cosine over a block is
    therefore the product of the predicted unit vector and the mean of the true unit vectors.

    Args:
        tokens: predicted vectors (n, token y, token x, component), of any length.
        truth: true unit vectors (n, y, x, component); NaN at pixels that were not measured.

    Returns:
        float64; NaN for a map without a measured pixel or with an undefined prediction.
    """
    grid = tokens.shape[1], tokens.shape[2]
    known = ~np.isnan(truth).any(-1)
    blocks = np.stack(
        [
            block_means(np.where(known, truth[..., part], 0), grid)
            for part in range(truth.shape[-1])
        ],
        axis=-1,
    )
    total = (unit_vectors(tokens) * blocks).sum(-1).mean((1, 2))
    share = known.mean((1, 2))
    return np.asarray(total / np.where(share > 0, share, np.nan))


def mean_angle(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average the angle between predicted and true directions over the pixels of each map, (n,).

    Args:
        predicted: vectors (n, y, x, component), of any length.
        truth: true unit vectors (n, y, x, component); NaN at pixels that were not measured.

    Returns:
        float64, in degrees, 0..180; NaN for a map without a measured pixel.
    """
    cosine = np.clip((unit_vectors(predicted) * truth).sum(-1), -1, 1)
    return mean_of_defined(np.degrees(np.arccos(cosine)).reshape(len(truth), -1))


def vector_records(
    run: Run, labels: LabelSet, is_test: np.ndarray, bootstrap: Bootstrap
) -> dict[str, VectorRecord]:
    """Score the vector properties of a run all of whose components are probed, by name.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.
    """
    return {
        name: _vector_record(_Vector(run, labels, is_test, parts), bootstrap)
        for name, parts in vectors_of(run.study.labels.maps).items()
    }


@dataclass(frozen=True)
class _Input:
    """Predictions of the best layer and step (on validation samples) of one layer or input control.

    Attributes:
        step: step of the cell, from 1.
        cosine: mean cosines of the held-out samples at every step, (step, held-out sample).
        angle: mean angles of the held-out samples in the best cell, (held-out sample,) in degrees.
        tokens: predictions of the best cell, (held-out sample, y, x, component).
    """

    step: int
    cosine: np.ndarray
    angle: np.ndarray
    tokens: np.ndarray


class _Vector:
    """Predictions and labels of one vector property, for the held-out samples of a run.

    Samples without activations, which input controls have, and with non-finite ones are NaN.
    """

    def __init__(
        self, run: Run, labels: LabelSet, is_test: np.ndarray, parts: tuple[str, ...]
    ) -> None:
        self.run, self.labels, self.is_test, self.parts = run, labels, is_test, parts
        self.truth = self.directions(labels.heldout)
        record = property_of(parts[0])
        self.kind = next(one for one in run.study.linear_kinds if probe_kind(one).supports(record))

    def directions(self, members: np.ndarray) -> np.ndarray:
        """Directions of the labels of some samples, (n, y, x, component) unit vectors."""
        return unit_vectors(np.stack([self.labels.maps[part][members] for part in self.parts], -1))

    def predicted(self, layer: str) -> _Input:
        """Predict at every step of a layer or input control, and choose the best one."""
        probes = [stored_probes(self.run, layer, self.kind, part) for part in self.parts]
        cosines, tokens = [], []
        for step, of_step in enumerate(zip(*probes, strict=True), start=1):
            tokens.append(self._of_cell(layer, step, list(of_step)))
            cosines.append(mean_cosine(tokens[-1], self.truth))
        cosine = np.stack(cosines)
        means = mean_of_defined(cosine[:, ~self.is_test], axis=1, otherwise=-np.inf)
        best = int(np.argmax(means))
        angle = mean_angle(upsample_vectors(tokens[best], self.truth.shape[1:3]), self.truth)
        return _Input(best + 1, cosine, angle, tokens[best])

    def _of_cell(self, layer: str, step: int, probes: list[LinearProbe]) -> np.ndarray:
        index, activations = read_cell(self.run, "trained", step, layer)
        heldout, rows, _ = np.intersect1d(index, self.labels.heldout, return_indices=True)
        features = probe_features(layer, activations[rows])
        # Products of non-finite activations are undefined, and so is the score of their sample.
        with np.errstate(invalid="ignore"):
            tokens = predictions(features, probes)
        everywhere = np.full((len(self.labels.heldout), *tokens.shape[1:]), np.nan)
        everywhere[np.searchsorted(self.labels.heldout, heldout)] = tokens
        return everywhere

    def mean_direction(self) -> np.ndarray:
        """Mean direction of the training samples' labels at each pixel, (y, x, component)."""
        return np.stack([self.labels.means[part] for part in self.parts], -1)


def _vector_record(vector: _Vector, bootstrap: Bootstrap) -> VectorRecord:
    """Choose the best layer and step of a vector property, and score it beside the controls."""
    run, is_test = vector.run, vector.is_test
    cells = {name: vector.predicted(name) for name in run.probe_inputs}

    def on_validation(name: str) -> float:
        scores = cells[name].cosine[cells[name].step - 1, ~is_test]
        return float(mean_of_defined(scores, otherwise=-np.inf))

    def score(name: str) -> VectorScore:
        cell = cells[name]
        return VectorScore(
            layer=name,
            step=cell.step,
            cosine=bootstrap.interval(cell.cosine[cell.step - 1, is_test]),
            degrees=bootstrap.interval(cell.angle[is_test]),
        )

    layer = max(run.layers, key=on_validation)
    angle, truth = cells[layer].angle[is_test], vector.truth[is_test]
    mean = np.broadcast_to(vector.mean_direction(), truth.shape)
    position = mean_angle(mean, truth)
    inputs = [name for name in cells if name not in run.layers]
    return VectorRecord(
        components=list(vector.parts),
        kind=vector.kind,
        best=score(layer),
        steps=[bootstrap.interval(cosine[is_test]) for cosine in cells[layer].cosine],
        position=bootstrap.interval(position),
        less_position=bootstrap.interval(angle - position),
        inputs={name: score(name) for name in inputs},
        less_inputs={
            name: bootstrap.interval(angle - cells[name].angle[is_test]) for name in inputs
        },
        exact=_exact_scores(vector, cells[layer].tokens[is_test], bootstrap),
    )


def _exact_scores(vector: _Vector, tokens: np.ndarray, bootstrap: Bootstrap) -> VectorExact | None:
    """Score predictions of test samples on ground-truth maps; None if the run has none of them."""
    run, parts = vector.run, vector.parts
    if not set(parts) <= set(run.exact_properties):
        return None
    test = vector.labels.heldout[vector.is_test]
    exact = [run.read("exact_maps", part, sample=test).astype(np.float64) for part in parts]
    truth = unit_vectors(np.stack(exact, -1))
    mean = np.broadcast_to(vector.mean_direction(), truth.shape)
    angle = mean_angle(upsample_vectors(tokens, truth.shape[1:3]), truth)
    labeled = None
    if parts[0] in labelers_of(run.study):
        labeled = bootstrap.interval(mean_angle(vector.truth[vector.is_test], truth))
    return VectorExact(
        best=bootstrap.interval(angle),
        position=bootstrap.interval(mean_angle(mean, truth)),
        labeler=labeled,
    )


def upsample_vectors(tokens: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Repeat each token's vector over its block of pixels, (n, *size, component).

    Args:
        tokens: vectors (n, token y, token x, component).
        size: height and width in pixels, multiples of the token grid.
    """
    down, across = size[0] // tokens.shape[1], size[1] // tokens.shape[2]
    return tokens.repeat(down, 1).repeat(across, 2)
