"""Records of control results and of scores on ground-truth maps in ``summary.json``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.study.probe_kinds import PROBE_KINDS

LARGEST_P = 0.05
"""Largest p value at which a probe counts as above a control."""


def _with_main_splits(counts: dict[str, int]) -> dict[str, int]:
    """Return numbers of samples by split; `ValueError` without those that sentences give."""
    if missing := {"train", "test"} - counts.keys():
        raise ValueError(f"no number of samples of the split {', '.join(sorted(missing))}")
    return counts


SplitCounts = Annotated[dict[str, int], AfterValidator(_with_main_splits)]
"""Numbers of samples by split, of which training and test samples are always given."""


class Record(BaseModel):
    """Pydantic base class of the control records; an unknown key is a validation error."""

    model_config = ConfigDict(extra="forbid")


class OwnBestRecord(Record):
    """Test score of a control at the layer and step where the control itself scores best.

    That cell is chosen on validation samples, as the probe's is.

    Attributes:
        step, layer, kind: cell and kind of probe; None for a control without them.
        score: mean score with its interval.
    """

    step: int | None = None
    layer: str | None = None
    kind: str | None = None
    score: Interval


class ControlRecord(Record):
    """Scores of a control, and their difference to the scores of the probe.

    Attributes:
        same_cell: score of the control in the probe's best cell.
        own_best: score of the control in its own best cell.
        difference: score of the probe's best cell minus the score of the control's own best cell,
            paired over samples.  For input controls it is corrected for the number of training
            samples, and its interval includes their choice (`analysis.controls.training_size`).
            If the control was computed on a part of the samples, the probe is fitted to the same
            training samples, and both are scored on the same test samples.
        p: one-sided p value that the probe is not above the control.  For shuffled labels it is a
            permutation p value, corrected for the choice among all cells; for others it is the
            share of the bootstrap's resamples in which the mean difference is not positive.
        partial: partial score of the control in the probe's best cell; None for masks.
        undefined: number of test samples whose score is undefined in the probe's best cell, of
            those that were to have one there; means exclude them.
        samples: number of samples of each split on which the control was computed; None if it was
            computed on all.  With ``capture.keep: statistics`` the probe that it is compared with
            is fitted to all training samples nevertheless.
    """

    same_cell: Interval
    own_best: OwnBestRecord
    difference: Interval
    p: float | None = None
    partial: Interval | None = None
    undefined: int = 0
    samples: SplitCounts | None = None

    @property
    def compared(self) -> bool:
        """Flag that is True if the difference has an interval, so that its sign can be judged."""
        return self.difference.low is not None

    @property
    def exceeded(self) -> bool:
        """Flag that is True if the probe's score is clearly higher than the control's score.

        The probe and the control are each scored in their own best cell (kind, layer and step).
        The interval of the paired difference must lie above zero, and p must be at most 0.05.
        """
        above = self.difference.low is not None and self.difference.low > 0
        return above and self.p is not None and self.p <= LARGEST_P


class ControlsRecord(Record):
    """Results of all controls; None for a control that was not computed.

    Registered conditions and nonlinear kinds of probes that a study enables add further keys.

    Attributes:
        position: the position baseline, which has no cell.
        shuffled_labels: probes fitted to the labels of other images; means over permutations.
        permuted_weights: probes of a denoiser with permuted weights.
        latents: probes of the denoiser's input, at the same step for `same_cell`.
        clean_pixels: probes of the predicted clean image's pixels, likewise.
        prompt: maps predicted from the prompt's embedding, which have no cell.
        same_prompt: the probe's own maps, scored against the labels of other test images of the
            same prompt; they have no cell of their own.
        mlp: probes with one hidden layer; they may score above the linear probe.
    """

    position: ControlRecord
    shuffled_labels: ControlRecord | None
    permuted_weights: ControlRecord | None
    latents: ControlRecord | None = None
    clean_pixels: ControlRecord | None = None
    prompt: ControlRecord | None = None
    same_prompt: ControlRecord | None = None
    mlp: ControlRecord | None = None

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ControlRecord] = Field(init=False)

    def by_name(self) -> dict[str, ControlRecord]:
        """Return the records of the computed controls by name, built-in controls first."""
        records = {name: getattr(self, name) for name in type(self).model_fields}
        records |= self.model_extra or {}
        return {name: record for name, record in records.items() if record is not None}

    def linear(self) -> dict[str, ControlRecord]:
        """Return the records of the controls by name, without nonlinear probes.

        Those show what a linear probe misses, so the best probe need not exceed them.
        """
        return {n: record for n, record in self.by_name().items() if n not in PROBE_KINDS}

    def not_exceeded(self) -> list[str]:
        """Return the names of the controls that the best probe does not clearly exceed.

        Controls that it cannot be compared with, for want of an interval, are among them, and
        nonlinear probes are not.
        """
        return [name for name, record in self.linear().items() if not record.exceeded]


class ExactRecord(Record):
    """Scores of probe, baseline and labeler on the ground-truth maps of the test samples.

    Attributes:
        best: score of the probe's best cell.
        partial: partial score of that cell; None for masks.
        position: score of the mean label of the training samples.
        difference: `best` minus `position`, paired over samples.
        labeler: score of the labeler's maps of the source images; None if the labels are exact.
    """

    best: Interval
    partial: Interval | None
    position: Interval
    difference: Interval
    labeler: Interval | None


class VectorScore(Record):
    """Score of predicted vectors (such as surface normals) at one layer and step.

    Attributes:
        cosine: mean cosine between predicted and labeled directions over an image's pixels.
        degrees: mean angle between them, in degrees.
    """

    layer: str
    step: int
    cosine: Interval
    degrees: Interval


class VectorExact(Record):
    """Mean angles between predicted and ground-truth vectors on the test samples, in degrees.

    Attributes:
        best: angle of the best cell's predictions.
        position: angle of the mean label of the training samples.
        labeler: angle of the labeler's vectors; None if the labels are exact.
    """

    best: Interval
    position: Interval
    labeler: Interval | None


class VectorRecord(Record):
    """Joint results of the components of a vector property, such as surface normals.

    Differences are paired over samples, in degrees; a negative one says that the probe is nearer.

    Attributes:
        components: names of the components.
        kind: kind of linear probe.
        best: best cell, chosen on validation samples by its mean cosine.
        steps: mean cosine of the best cell's layer at every step.
        position: mean angle of the mean label of the training samples at each position.
        less_position: angle of the best cell less that of `position`.
        inputs: input controls by name, each in its own best cell.
        less_inputs: angle of the best cell less that of each of them.
        partial_inputs: number of samples of each split on which an input control was computed, by
            name, where these are not all.  Its probes have fewer training samples than the best
            cell's then, which may be a part of the difference.
        exact: scores on ground-truth maps; None if the source images have none of the property.
    """

    components: list[str]
    kind: str
    best: VectorScore
    steps: list[Interval]
    position: Interval
    less_position: Interval
    inputs: dict[str, VectorScore]
    less_inputs: dict[str, Interval]
    partial_inputs: dict[str, SplitCounts] = {}
    exact: VectorExact | None


class ClassMapScore(Record):
    """Score of class maps predicted at one layer and step: IoU of each class, and their mean.

    Attributes:
        mean_iou: mean of the intersection over union, 0..1, over the classes that occur in the
            labels of the scored test images.
        by_class: intersection over union of each class, by the name of its component; undefined
            for a class that occurs in none of these labels.
    """

    layer: str
    step: int
    mean_iou: Interval
    by_class: dict[str, Interval]


class ClassMapExact(Record):
    """Mean IoU of predicted and ground-truth class maps on the test samples.

    Attributes:
        best: mean IoU of the best cell's predictions.
        position: mean IoU of the most frequent class at each position.
        labeler: mean IoU of the labeler's maps; None if the labels are exact.
    """

    best: Interval
    position: Interval
    labeler: Interval | None


class ClassMapRecord(Record):
    """Joint results of the classes of a class map, each of which is also a mask property.

    Differences are of the same resamples of the test samples.

    Attributes:
        components: names of the classes' properties.
        kind: kind of linear probe.
        best: best cell, chosen on validation samples by its mean IoU.
        steps: mean IoU of the best cell's layer at every step.
        position: mean IoU of the most frequent class of the training samples at each position.
        above_position: mean IoU of the best cell less that of `position`.
        inputs: input controls by name, each in its own best cell.
        above_inputs: mean IoU of the best cell less that of each of them.
        partial_inputs: number of samples of each split on which an input control was computed, by
            name, where these are not all.  Its probes have fewer training samples than the best
            cell's then, which may be a part of the difference.
        exact: scores on ground-truth maps; None if the source images have none of the property.
    """

    components: list[str]
    kind: str
    best: ClassMapScore
    steps: list[Interval]
    position: Interval
    above_position: Interval
    inputs: dict[str, ClassMapScore]
    above_inputs: dict[str, Interval]
    partial_inputs: dict[str, SplitCounts] = {}
    exact: ClassMapExact | None


class NumberScore(Record):
    """Score of ridge probes that predict a number per image, at one layer and step.

    Attributes:
        spearman: rank correlation of predictions and labels over the test images.
    """

    layer: str
    step: int
    spearman: Interval


class NumberRecord(Record):
    """Results of a property that is one number per image.

    Differences are of the same resamples of the test samples.

    Attributes:
        best: best cell, chosen on validation samples by its rank correlation.
        steps: rank correlation of the best cell's layer at every step.
        shuffled: rank correlation of the best cell for each permutation of the numbers among all
            samples; each permutation has a best cell of its own.  None where it is undefined,
            because all test samples got the same number.
        p: share of the permutations that do as well as the labels, counting the labels as one, of
            those with a defined correlation; None without such permutations, or if the correlation
            of the best cell is undefined.
        inputs: input controls by name, each at its own best step.
        above_inputs: rank correlation of the best cell less that of each of them.
        partial_inputs: number of samples of each split on which an input control was computed, by
            name, where these are not all.  Its probes have fewer training samples than the best
            cell's then, which may be a part of the difference.
        prompt: rank correlation of a ridge regression from the prompt's embedding; None without
            this control.
        above_prompt: rank correlation of the best cell less that of the prompt.
    """

    best: NumberScore
    steps: list[Interval]
    shuffled: list[float | None]
    p: float | None
    inputs: dict[str, NumberScore]
    above_inputs: dict[str, Interval]
    partial_inputs: dict[str, SplitCounts] = {}
    prompt: Interval | None
    above_prompt: Interval | None
