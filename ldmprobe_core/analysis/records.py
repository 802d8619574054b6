"""Records of ``summary.json``, the numbers of a finished run.

Choices (best cell, layer at each step, kind of probe) are made on validation samples.  Reported
scores are measured on test samples, with bootstrap intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ldmprobe_core.probing.bootstrap import Interval
from ldmprobe_core.probing.emergence import Emergence, Leads

if TYPE_CHECKING:
    from ldmprobe_core.storage.run import Run


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CellRecord(_Record):
    """Score of one cell on the test samples.

    Attributes:
        step: sampler step, from 1.
        layer: name of the layer.
        kind: kind of the probe.
        metric: the property's headline metric, in which `mean`, `low` and `high` are given.
        partial: score after the training mean map is regressed out of prediction and label; None
            for masks.
        other: scores in the remaining metrics of the property.
    """

    step: int
    layer: str
    kind: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    partial: Interval | None = None
    other: dict[str, Interval] = Field(default_factory=dict)


class EmergenceRecord(_Record):
    """Emergence of a property in the probes and in the image labeler.

    Attributes:
        probe: in the probes, best layer of each step.
        decoded: in the labeler's maps of each step's decoded latents.
        clean: in the labeler's maps of each step's predicted clean image.
        lead: lead of the probes over each of the labeler's two curves, paired over samples.
    """

    probe: Emergence
    decoded: Emergence
    clean: Emergence
    lead: LeadRecord


class LeadRecord(_Record):
    """Leads of the probes over the labeler on decoded latents and on predicted clean images."""

    decoded: Leads
    clean: Leads


class ControlRecord(Interval):
    """Score of a control in the best cell.

    Attributes:
        partial: partial score of the control; None for masks.
        undefined: number of test samples whose score is undefined; the mean excludes them.
    """

    partial: Interval | None = None
    undefined: int = 0


class ControlsRecord(_Record):
    """Scores of the controls in the best cell; None where a control is off.

    Registered conditions and nonlinear kinds of probes that a study enables add further keys.

    Attributes:
        position: the position baseline.
        shuffled_labels: the best cell's probe, fitted to the labels of other images.
        permuted_weights: the best cell's probe, fitted in a denoiser with permuted weights.
        latents: the best linear probe of the denoiser's input at the best cell's step.
        mlp: a probe with one hidden layer in the best cell; it may score above the linear probe.
    """

    position: ControlRecord
    shuffled_labels: ControlRecord | None
    permuted_weights: ControlRecord | None
    latents: ControlRecord | None = None
    mlp: ControlRecord | None = None

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ControlRecord] = Field(init=False)

    def by_name(self) -> dict[str, ControlRecord]:
        """Records of the enabled controls by name; declared fields come first."""
        records = {name: getattr(self, name) for name in type(self).model_fields}
        records |= self.model_extra or {}
        return {name: record for name, record in records.items() if record is not None}


class UndefinedRecord(_Record):
    """Numbers of undefined and of empty scores of a property, in its headline metric.

    Attributes:
        best: number of test samples with an undefined score in the best cell.
        any: number of undefined scores over all cells and held-out samples.
        both_empty: number of test samples whose label and best prediction are both empty masks,
            which scores 1.
        truth_empty: number of test samples whose label is an empty mask.
    """

    best: int
    any: int
    both_empty: int = 0
    truth_empty: int = 0


class PropertyRecord(_Record):
    """Results of one property.

    Attributes:
        missing: share of the pixels of the stored samples' labels that were not measured, and are
            left out of fits and scores.
    """

    best: CellRecord
    last: CellRecord
    emergence: EmergenceRecord
    controls: ControlsRecord
    undefined: UndefinedRecord
    missing: float = 0.0


class PhotographsRecord(_Record):
    """Results of the class labeler on the user's photographs, for comparison.

    Attributes:
        count: number of photographs.
        confident: fraction of them with a top probability above 0.9.
        top: mean top probability.
        classes: number of photographs by top class.
    """

    count: int
    confident: float
    top: float
    classes: dict[str, int]


class ClassesRecord(_Record):
    """Results of the class labeler on final images and on the images of each step.

    Attributes:
        accuracy: fraction of samples whose final image gets the class of its prompt; None if
            prompts name no class.
        confident: fraction of final images with a top probability above 0.9.
        by_prompt: whether the target class is the prompt's; otherwise it is the top class of the
            final image.
        recognized: fraction of images whose target class leads at the last step.
        recognition_step: by source of step images, the mean step from which the target class leads
            to the end, over the recognized images.
        agreement: by source of step images, for each step the fraction of images whose top class is
            that of the final image.
        photographs: results on the user's photographs; None if there are none.
    """

    accuracy: Interval | None
    confident: float
    by_prompt: bool
    recognized: float
    recognition_step: dict[str, Interval]
    agreement: dict[str, list[float]]
    photographs: PhotographsRecord | None = None


class NonfiniteRecord(_Record):
    """Activation values of one cell that are not finite in float16.

    Attributes:
        network: ``trained`` or ``permuted``.
        step: from 1.
        share: of all values of the cell, over all samples.
        samples: number of stored samples that the cell's probes leave out for it.
    """

    network: str
    step: int
    layer: str
    share: float
    samples: int


class Summary(_Record):
    """Contents of ``summary.json``.

    Attributes:
        samples: number of samples, in total and by split, and of groups in the test split.
        steps: number of sampler steps.
        layers: number of captured layers.
        properties: results by property.
        classes: results of the class labeler; None if no class is labeled.
        labelers: by property, the labeler's score against the exact maps of the same test samples;
            None without exact maps.
        nonfinite, nonfinite_permuted: number of non-finite activation values of the trained and of
            the permuted denoiser.
        nonfinite_cells: the cells that they are in, largest share first.
        seconds: wall time by stage.
        bytes: size of the run's files.
        versions: versions of Python packages by name.
        notes: remarks of the plan on settings that it accepted, one sentence each, such as prompts
            that are truncated or words that the model was not trained on.
    """

    study: str
    study_hash: str
    model_fingerprint: str
    samples: dict[str, int]
    steps: int
    layers: int
    properties: dict[str, PropertyRecord]
    classes: ClassesRecord | None = Field(serialization_alias="class", validation_alias="class")
    labelers: dict[str, Interval] | None = None
    nonfinite: int
    nonfinite_permuted: int | None = None
    nonfinite_cells: list[NonfiniteRecord] = Field(default_factory=list)
    seconds: dict[str, float]
    bytes: int
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    model_config = ConfigDict(populate_by_name=True)


def load_summary(run: Run) -> Summary:
    """Read the summary of a finished run.

    Raises:
        UserError: there is no run, or it is not finished.
        RunError: summary.json is damaged, or of another release.
    """
    remedy = f"`ldmprobe report {run.url}` writes it again from the stored scores"
    return run.location.read_record("summary.json", Summary, remedy)
