"""Scores of probes on ground-truth maps, which a user may give with source images.

A probe that is fitted to a labeler's maps is scored on those maps in every other table.  Its scores
on exact maps tell what it reads of the truth.  Where the labels are exact maps themselves, both are
the same.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.analysis.controls.records import ExactRecord
from ldmprobe_core.analysis.generalization.refits import TestScorer
from ldmprobe_core.pipeline.groups import ACTIVATION_GROUPS
from ldmprobe_core.pipeline.labels import as_label
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.metrics import score_maps
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of


def exact_record(
    run: Run,
    labels: LabelSet,
    prop: str,
    cell: tuple[int, str, LinearProbe],
    test: np.ndarray,
    bootstrap: Bootstrap,
) -> ExactRecord | None:
    """Score a property's best probe, position baseline and labeler on ground-truth maps.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        prop: name of the property.
        cell: best cell: its step (from 1), layer and probe.
        test: indices of the test samples, (test sample,).
        bootstrap: bootstrap over them.

    Returns:
        the scores; None if the source images have no ground-truth maps of the property.
    """
    if prop not in run.exact_properties:
        return None
    truth = as_label(run.study, prop, run.read("exact_maps", prop, sample=test))
    mean, everything = labels.means[prop], np.arange(len(test))
    step, layer, probe = cell
    scorer = TestScorer(
        LabelSet({prop: truth}, {prop: mean}, everything[:0], everything[:0], everything),
        prop,
        everything,
    )
    group = f"{ACTIVATION_GROUPS['trained']}/{layer}"
    activations = run.read(group, "activation", step=step - 1, sample=test)
    # Samples with non-finite activations get undefined predictions, and therefore the score NaN.
    with np.errstate(invalid="ignore"):
        tokens = probe.predict(activations)
    scores = scorer.scores(tokens, probe.cut)
    cut = None
    if property_of(prop).is_mask:
        tuning = labels.train if len(labels.train) else labels.validation
        cut = position_cut(mean, labels.maps[prop][tuning])
    predicted = np.broadcast_to(mean, (len(test), *mean.shape))
    position = score_maps(prop, predicted, truth, mean, cut=cut)[0]
    labeled = None
    if run.study.labels.is_labeled(prop):
        labeled = score_maps(prop, labels.maps[prop][test], truth, mean)[0]
    return ExactRecord(
        best=bootstrap.interval(scores[0]),
        partial=bootstrap.interval(scores[1]) if len(scores) > 1 else None,
        position=bootstrap.interval(position),
        difference=bootstrap.interval(scores[0] - position),
        labeler=None if labeled is None else bootstrap.interval(labeled),
    )
