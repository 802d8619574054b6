"""Records of ``summary.json``, the numbers of a finished run.

Choices (best cell, layer at each step, kind of probe) are made on validation samples.  Reported
scores are measured on test samples, with bootstrap intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from ldmprobe_core.analysis.classes.records import ClassesRecord
from ldmprobe_core.analysis.controls.records import (
    ClassMapRecord,
    ControlRecord,
    ControlsRecord,
    ExactRecord,
    NumberRecord,
    Record,
    SplitCounts,
    VectorRecord,
)
from ldmprobe_core.analysis.generalization.records import AnalysesRecord
from ldmprobe_core.errors import RunError
from ldmprobe_core.interventions.records import InterventionRecord
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.probing.inference.emergence import Crossing, Lead

if TYPE_CHECKING:
    from ldmprobe_core.storage.run import Run


class CellRecord(Record):
    """Test score of a probe at one layer and step.

    Attributes:
        step: sampler step, from 1.
        layer: name of the layer.
        kind: kind of the probe.
        metric: the property's headline metric, in which `score` is given.
        score: mean score with its interval.
        partial: score after the training mean map is regressed out of prediction and label; None
            for masks.
        other: scores in the remaining metrics of the property.
    """

    step: int
    layer: str
    kind: str
    metric: str
    score: Interval
    partial: Interval | None = None
    other: dict[str, Interval] = Field(default_factory=dict)

    def __str__(self) -> str:
        """Name the cell with its probe and score, in one line."""
        return f"step {self.step}, {self.layer}, {self.kind}: {self.metric} {self.score}"


class LayerRecord(Record):
    """Layer and kind of probe for which the summary reports scores over all steps.

    Both are chosen once for all steps, by the mean validation score over the steps.  Among tied
    layers, the one that most re-splits choose is taken.

    Attributes:
        name: name of the layer.
        kind: kind of the probe.
        tied: layers within one standard error of the best one, best first; `name` is among them.
        resplits: number of re-splits of the training and validation prompts that choose each layer
            among `tied`, by name; empty if there are none, because training activations are not
            stored, or are of a single prompt.
    """

    name: str
    kind: str
    tied: list[str]
    resplits: dict[str, int] = Field(default_factory=dict)


class BarRecord(Record):
    """Onset and settled steps of a score curve.

    From these steps on, the curve stays at or above 50 % (onset) and 90 % (settled) of a final gain
    over the position baseline, which is its own or that of the probes.
    """

    onset: Crossing
    settled: Crossing


UndefinedReason = Literal["not_above_position", "too_few_prompts", "no_labeler"]
"""Reasons why a curve has no onset and settled steps; see `CurveRecord`."""


class CurveRecord(Record):
    """Onset and settled steps of one curve, for its own and for the probes' final gain.

    Attributes:
        relative: steps at which the curve reaches shares of its own final gain over position.
        absolute: steps at which it reaches shares of the probes' final gain, which is the same
            height for every curve.
        undefined_because: reason why all of these steps are undefined: ``not_above_position`` if
            the curve is not clearly above the baseline at the last step, ``too_few_prompts`` if
            too few for an interval have a score at every step, ``no_labeler`` if it is a labeler's
            curve and the labels are maps of files.  None if the steps are defined, and in summaries
            of earlier releases.
    """

    relative: BarRecord
    absolute: BarRecord
    undefined_because: UndefinedReason | None = Field(
        default=None, exclude_if=lambda value: value is None
    )


class EmergenceRecord(Record):
    """Onset and settled steps of a property, in the curves of the probes and of the labeler.

    Attributes:
        probe: in the probes of the chosen layer.
        decoded: in the labeler's maps of each step's decoded latents.
        clean: in the labeler's maps of each step's predicted clean image.
        decoded_recalibrated, clean_recalibrated: in the same maps after a linear recalibration with
            the training mean map, which is fitted to training samples at each step.
        paired: in the probes, on the test samples with step images alone, to which the labeler's
            curves and the leads refer; None if all test samples have them.
    """

    probe: CurveRecord
    decoded: CurveRecord
    clean: CurveRecord
    decoded_recalibrated: CurveRecord
    clean_recalibrated: CurveRecord
    paired: CurveRecord | None = None


class LeadRecord(Record):
    """Lead of the probes over the image labeler: steps by which they reach the same score earlier.

    The labeler is scored on one kind of step images, with or without recalibration.

    Attributes:
        samples: number of test samples in which the scores of both are defined at every step, to
            which both steps of a lead refer; None in summaries of earlier releases.
    """

    onset: Lead
    settled: Lead
    samples: int | None = None


class LeadsRecord(Record):
    """Leads of the probes over the image labeler, for each kind of images that the labeler reads.

    The keys are those of `EmergenceRecord`.  Probes and labeler are compared on the same test
    samples (`LeadRecord.samples`).

    Attributes:
        samples: number of test samples with step images.
    """

    decoded: LeadRecord
    clean: LeadRecord
    decoded_recalibrated: LeadRecord
    clean_recalibrated: LeadRecord
    samples: int | None = None


class StepRecord(Record):
    """Scores of the reported layer's probe at one step, alone and relative to input controls.

    Attributes:
        step: sampler step, from 1.
        score: score of the probe in the headline metric.
        metric: metric of `value` and `less_inputs`: the partial form of the headline metric, to
            which position adds nothing, or for masks AUROC, which needs no cut.
        value: score of the probe in `metric`.
        less_inputs: by name of the input control, score of the probe minus score of the control at
            the same step, in `metric`, paired over samples.
    """

    step: int
    score: Interval
    metric: str
    value: Interval
    less_inputs: dict[str, Interval]


class ClustersRecord(Record):
    """Numbers of prompts and of categories, the clusters that the bootstrap resamples.

    Attributes:
        prompts: number of distinct prompts.
        categories: number of distinct categories; None if they are unknown or too few.
        wider: clusters that give the wider interval of the best cell's score, which is the one
            reported; None if there is no interval.
        few_categories: number of distinct categories if they are known and too few to be
            resampled: intervals do not include the spread between categories.
    """

    prompts: int
    categories: int | None
    wider: Literal["prompts", "categories"] | None
    few_categories: int | None = Field(None, exclude_if=lambda value: value is None)


class UndefinedRecord(Record):
    """Counts of a property's undefined scores (in the main metric) and of its empty masks.

    Attributes:
        best: number of test samples with an undefined score in the best cell.
        any: number of undefined scores over all cells and held-out samples.
        both_empty: number of test samples whose label and best prediction are both empty masks,
            which scores 1.
        truth_empty: number of test samples whose label is an empty mask.
        constant: the only value of the labels of all test samples, in which case all of their
            scores are undefined; None if the labels vary.
        unchosen: whether no validation score of any cell is defined, so that the best cell is not
            the best but the first one.
    """

    best: int
    any: int
    both_empty: int = 0
    truth_empty: int = 0
    constant: float | None = None
    unchosen: bool = False


class PropertyRecord(Record):
    """Results of one property.

    Attributes:
        best: best cell, chosen on validation samples.
        last: best cell of the last step.
        layer: layer of the curves that `steps`, `emergence` and `leads` refer to.
        steps: scores of that layer at every step.
        clusters: clusters of dependent samples.
        not_beyond: names of the controls that the best cell does not clearly exceed, with those
            whose difference has no interval (`not_compared`); nonlinear kinds of probes are not
            among them.
        ceilings: best score that predictions constant on the blocks of a token grid can reach, on
            average over test samples, by grid as ``16x16`` (rows x columns); None where the main
            metric is registered, because the best such predictions are not known.
        constant: score of predicting foreground everywhere; None for properties other than masks,
            for which the score of a constant is undefined.
        missing: share of the pixels of the stored samples' labels that were not measured, and are
            left out of fits and scores.
        analyses: transfer between steps, category hold-out, learning curve and description length.
        exact: scores on ground-truth maps; None if the source images have none of the property.
    """

    best: CellRecord
    last: CellRecord
    layer: LayerRecord
    steps: list[StepRecord]
    emergence: EmergenceRecord
    leads: LeadsRecord
    clusters: ClustersRecord
    controls: ControlsRecord
    not_beyond: list[str]
    ceilings: dict[str, float | None]
    constant: float | None
    undefined: UndefinedRecord
    missing: float = 0.0
    analyses: AnalysesRecord | None = None
    exact: ExactRecord | None = None

    @property
    def not_clear(self) -> list[str]:
        """Names of the controls from which the best cell differs neither upwards nor downwards."""
        below = self.below
        return [n for n in self.not_beyond if n not in below and self._control(n).compared]

    @property
    def below(self) -> list[str]:
        """Names of the controls whose score is clearly higher than that of the best cell."""
        return [n for n in self.not_beyond if (self._control(n).difference.high or 0.0) < 0]

    @property
    def not_compared(self) -> list[str]:
        """Names of the controls of which too few prompts have a score for a comparison."""
        return [n for n in self.not_beyond if not self._control(n).compared]

    def _control(self, name: str) -> ControlRecord:
        return self.controls.by_name()[name]


class NonfiniteRecord(Record):
    """Share of activation values of one layer at one step that are infinite or NaN.

    Attributes:
        network: ``trained`` or ``permuted``.
        step: from 1.
        share: of all values of the cell, over all samples.
        samples: number of stored samples that the cell's probes leave out for it; with
            ``capture.keep: statistics`` these are held-out samples, and training samples are left
            out too.
    """

    network: str
    step: int
    layer: str
    share: float
    samples: int


class PeakRecord(Record):
    """Largest memory of a process that generates and labels images, in bytes.

    Attributes:
        planned: expected size, for all workers of the process.
        measured: size at the end of a unit of work, of the process that had used most; it includes
            what the process did before.
    """

    planned: int
    measured: int


def peak_records(planned: dict[str, int], measured: dict[str, int]) -> dict[str, PeakRecord]:
    """Pair the planned with the measured peak, in bytes, for each kind of memory measured."""
    return {name: PeakRecord(planned=planned[name], measured=n) for name, n in measured.items()}


def _if_any() -> Any:
    """Build a field of records by name, which the file leaves out if there are none."""
    return Field(default_factory=dict, exclude_if=lambda value: not value)


class Summary(Record):
    """Main results of a run: the contents of ``summary.json``.

    Attributes:
        samples: number of samples, in total and by split, and of groups in the test split.
        steps: number of sampler steps.
        log_snr: log signal-to-noise ratio (natural, of variances) of the latents before each step;
            None for latents without signal or noise.  Empty for runs of earlier releases.
        layers: number of captured layers.
        properties: results by property.
        vectors: joint results of the components of each vector property, by its name.
        class_maps: joint results of the classes of each class map, by its name.
        numbers: results of each property that is one number per image, by its name.
        classes: results of the class labeler; None if no class is labeled.
        labelers: by property, the labeler's score against the exact maps of the same test samples;
            None without ground-truth maps.
        nonfinite, nonfinite_permuted: number of non-finite activation values of the trained and of
            the permuted denoiser.
        nonfinite_cells: the cells that they are in, largest share first.
        interventions: main results of the finished interventions, by name.
        seconds: wall time by stage.
        memory: peak of ``memory``, the resident set, and of ``GPU memory``; empty for runs of
            earlier releases, and if all images were generated and labeled before.
        bytes: size of the run's files.
        versions: versions of Python packages by name, with which the run was created.
        notes: remarks, one sentence each: those of the plan on settings that it accepted, such as
            prompts that are truncated, and that several versions or devices took part.
    """

    study: str
    study_hash: str
    model_fingerprint: str
    samples: SplitCounts
    steps: int
    log_snr: list[float | None] = Field(default_factory=list)
    layers: int
    properties: dict[str, PropertyRecord] = Field(min_length=1)
    vectors: dict[str, VectorRecord] = _if_any()
    class_maps: dict[str, ClassMapRecord] = _if_any()
    numbers: dict[str, NumberRecord] = _if_any()
    classes: ClassesRecord | None = Field(serialization_alias="class", validation_alias="class")
    labelers: dict[str, Interval] | None = None
    nonfinite: int
    nonfinite_permuted: int | None = None
    nonfinite_cells: list[NonfiniteRecord] = Field(default_factory=list)
    interventions: dict[str, InterventionRecord] = Field(default_factory=dict)
    seconds: dict[str, float]
    memory: dict[str, PeakRecord] = _if_any()
    bytes: int
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    model_config = ConfigDict(populate_by_name=True)


def load_summary(run: Run) -> Summary:
    """Read the summary of a finished run.

    Raises:
        UserError: there is no run, or it is not finished.
        RunError: summary.json is damaged, of another release, or of another run.
    """
    remedy = f"`ldmprobe report {run.url}` writes it again from the stored scores"
    summary = run.location.read_record("summary.json", Summary, remedy)
    if summary.study_hash != run.attributes["study_hash"]:
        raise RunError(f"{run.url}/summary.json is of another run. Fix: {remedy}")
    return summary
