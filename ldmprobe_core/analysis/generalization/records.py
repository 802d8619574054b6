"""Records of the generalization analyses of a property in ``summary.json``.

All analyses refer to the layer of the property's curves (`analysis.records.LayerRecord`).  The
probes of the transfer matrix are the stored ones, of the kind of the curves.  All other analyses
fit ridge probes with a position term.  The term is the mean label of the images that the probe is
fitted to, and only of these.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ldmprobe_core.probing.inference.bootstrap import Interval

Matrix = list[list[float | None]]
"""Rows of a matrix; None for undefined values."""


class _Record(BaseModel):
    """Pydantic base class of the analysis records; an unknown key is a validation error."""

    model_config = ConfigDict(extra="forbid")


class TransferRecord(_Record):
    """Scores of each step's probe on every step's activations, and cosines between probe weights.

    In the two matrices of scores, a row is the step that the probe was fitted at, and a column the
    step of the test samples' activations.  The diagonal holds the ordinary scores.  The probe keeps
    its bias, position term and cut.

    Attributes:
        metric: headline metric of the property.
        score: mean headline score over test samples, (step, step).
        partial: mean partial score, (step, step); None for masks.
        cosine: cosine of the weights of two steps' probes, (step, step), -1..1.  The weight of a
            channel is multiplied by the channel's standard deviation over the test tokens of the
            probe's own step, because raw weights depend on the scale of the channels.
    """

    metric: str
    score: Matrix
    partial: Matrix | None
    cosine: Matrix


class CategoryRecord(_Record):
    """Score of the property's best probe on the test samples of one category.

    Attributes:
        samples: number of test samples.
        score: mean score; its interval is taken over prompts, and None if they are too few.
    """

    samples: int
    score: Interval


class HoldoutRecord(_Record):
    """Scores of probes, at one step, on categories that were left out of their training.

    The categories are divided into folds.  For each fold, a probe is fitted without the fold's
    training and validation samples, and scored on the fold's test samples.  All scores are headline
    scores over the same test samples.

    Attributes:
        step: step of the activations, from 1.
        folds: categories of each fold.
        unseen: scores of the probes that saw no sample of the scored category.
        ordinary: scores of the probe fitted to all training samples.
        matched: scores of probes fitted to as many training samples as those of `unseen`, but of
            all categories.
        difference: `unseen` minus `ordinary`, paired over samples.
        matched_difference: `unseen` minus `matched`, likewise.  It leaves out the part of the
            difference that is due to fewer training samples.
    """

    step: int
    folds: list[list[str]]
    unseen: Interval
    ordinary: Interval
    matched: Interval
    difference: Interval
    matched_difference: Interval


class LearningRecord(_Record):
    """Learning curve at one step: scores of probes fitted to growing numbers of training images.

    The subsets of a draw are nested: its training images are ordered at random, prompt by prompt,
    and a probe is fitted to the first 4, 8, 16, ... of them and to all.  The penalty is chosen on
    the validation samples.

    Attributes:
        step: step of the activations, from 1.
        images: number of training images of each probe.
        score: score on the test samples for each of these numbers, averaged over draws.
        draws: mean score of each draw, (number of images, draw).
    """

    step: int
    images: list[int]
    score: list[Interval]
    draws: Matrix


class CodeLengthRecord(_Record):
    """Description length of the training labels by online coding, at one step.

    Blocks of training images are coded one after the other, each with a probe that was fitted to
    the blocks before it (`description` has the details).

    Attributes:
        step: step of the activations, from 1.
        position: code length with the position term alone, in bits per token.  For a mask, these
            are the bits of one pixel of the token's block.  For other properties, the length is
            that of a density per unit of the label, so it may be negative.
        probe: code length with the probe, in the same unit.
        saved: `position` minus `probe` in the same unit, with an interval over training images.
        compression: `position` divided by `probe`; None for properties other than masks, for which
            the ratio depends on the unit of the label.
    """

    step: int
    position: float
    probe: float
    saved: Interval
    compression: float | None


class AnalysesRecord(_Record):
    """Generalization analyses of a property, computed from the data that a finished run stores.

    Attributes:
        transfer: scores and cosines between steps.
        categories: scores by category; None if the category of a test sample is unknown.
        holdout: category hold-out at the onset step and the last step; None if a category is
            unknown or there are fewer than 5.
        learning: learning curves at the same steps.
        code_length: description lengths at the same steps; None below 5 training images.

    `holdout`, `learning` and `code_length` need the activations of training samples, so they are
    None for a run with ``capture.keep`` at ``statistics``.
    """

    transfer: TransferRecord
    categories: dict[str, CategoryRecord] | None = None
    holdout: list[HoldoutRecord] | None = None
    learning: list[LearningRecord] | None = None
    code_length: list[CodeLengthRecord] | None = None


def to_matrix(values: list[list[float]]) -> Matrix:
    """Convert the rows of a matrix for JSON, which has no NaN: NaN becomes None."""
    return [[None if value != value else float(value) for value in row] for row in values]
