"""Joint scores of a vector property's components, such as the angle between two surface normals.

Each component is a property of its own, with probes and controls.  Their predictions together are a
vector at each token, which is compared with the vectors of the labels.  Vectors are compared by
direction alone: both are divided by their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmprobe_core.analysis.controls.coverage import partial_inputs
from ldmprobe_core.analysis.controls.records import VectorExact, VectorRecord, VectorScore
from ldmprobe_core.analysis.joint.probes import JointProbes, upsample_tokens
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.selection import ranked_means
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.extensions.joint import joint_properties


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors (..., component) by their lengths; a vector of length zero gives NaN."""
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
    """Build the records of a run's vector properties by name, if all their components are probed.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.
    """
    return {
        name: _vector_record(_Vector(JointProbes(run, labels, is_test, parts)), bootstrap)
        for name, parts in joint_properties(run.study.labels.maps, "vector").items()
    }


@dataclass(frozen=True)
class _Input:
    """Vectors predicted from one layer or input control, and their agreement with the labels.

    The *cell* is the step with the best mean cosine on validation samples.

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
    """Unit-vector labels of one vector property, and the probes that predict its vectors."""

    def __init__(self, probes: JointProbes) -> None:
        self.probes = probes
        self.truth = unit_vectors(probes.truth(probes.labels.heldout))

    def predicted(self, layer: str) -> _Input:
        """Predict vectors from one probe input at every step, and choose the best step."""
        tokens = list(self.probes.tokens(layer))
        cosine = np.stack([mean_cosine(of_step, self.truth) for of_step in tokens])
        best = int(ranked_means(cosine[:, ~self.probes.is_test]).argmax())
        angle = mean_angle(upsample_tokens(tokens[best], self.truth.shape[1:3]), self.truth)
        return _Input(best + 1, cosine, angle, tokens[best])


def _vector_record(vector: _Vector, bootstrap: Bootstrap) -> VectorRecord:
    """Build a vector property's record: test scores of its best layer and step, and of controls."""
    run, is_test = vector.probes.run, vector.probes.is_test
    cells = {name: vector.predicted(name) for name in run.probe_inputs}

    def score(name: str) -> VectorScore:
        cell = cells[name]
        return VectorScore(
            layer=name,
            step=cell.step,
            cosine=bootstrap.interval(cell.cosine[cell.step - 1, is_test]),
            degrees=bootstrap.interval(cell.angle[is_test]),
        )

    validation = [cells[name].cosine[cells[name].step - 1, ~is_test] for name in run.layers]
    layer = run.layers[int(ranked_means(np.stack(validation)).argmax())]
    angle, truth = cells[layer].angle[is_test], vector.truth[is_test]
    mean = np.broadcast_to(vector.probes.mean_map(), truth.shape)
    position = mean_angle(mean, truth)
    inputs = [name for name in cells if name not in run.layers]
    return VectorRecord(
        components=list(vector.probes.parts),
        kind=vector.probes.kind,
        best=score(layer),
        steps=[bootstrap.interval(cosine[is_test]) for cosine in cells[layer].cosine],
        position=bootstrap.interval(position),
        less_position=bootstrap.interval(angle - position),
        inputs={name: score(name) for name in inputs},
        less_inputs={
            name: bootstrap.interval(angle - cells[name].angle[is_test]) for name in inputs
        },
        partial_inputs=partial_inputs(run, vector.probes.labels.heldout),
        exact=_exact_scores(vector, cells[layer].tokens[is_test], bootstrap),
    )


def _exact_scores(vector: _Vector, tokens: np.ndarray, bootstrap: Bootstrap) -> VectorExact | None:
    """Score predictions of test samples on ground-truth maps; None if the run has no such maps."""
    probes, exact = vector.probes, vector.probes.exact_maps()
    if exact is None:
        return None
    truth = unit_vectors(exact)
    mean = np.broadcast_to(probes.mean_map(), truth.shape)
    angle = mean_angle(upsample_tokens(tokens, truth.shape[1:3]), truth)
    labeled = mean_angle(vector.truth[probes.is_test], truth) if probes.has_labeler else None
    return VectorExact(
        best=bootstrap.interval(angle),
        position=bootstrap.interval(mean_angle(mean, truth)),
        labeler=None if labeled is None else bootstrap.interval(labeled),
    )
