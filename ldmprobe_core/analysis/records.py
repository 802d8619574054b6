"""Records of ``summary.json``, the numbers of a finished run.

Everything that is chosen (best cell, layer at each step, kind of probe) is chosen on validation
samples; everything that is reported is measured on test samples, with bootstrap intervals.
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
    """One cell with its score on the test samples.

    Attributes:
        residual: the same probe's residual score (position taken off); None for masks.
        other: the remaining metrics.
    """

    step: int
    layer: str
    kind: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    residual: Interval | None = None
    other: dict[str, Interval] = Field(default_factory=dict)


class EmergenceRecord(_Record):
    """Emergence in the probes, in labelers on decoded latents, and on predicted clean images.

    Attributes:
        lead: of the probes over each labeler, paired over samples.
    """

    probe: Emergence
    decoded: Emergence
    clean: Emergence
    lead: LeadRecord


class LeadRecord(_Record):
    """By how many steps probes are ahead of the labeler on decoded latents, and on clean images."""

    decoded: Leads
    clean: Leads


class ControlRecord(Interval):
    """A control's score in the best cell and, for maps, its residual score.

    Attributes:
        undefined: test samples whose score is undefined, left out of the mean.
    """

    residual: Interval | None = None
    undefined: int = 0


class ControlsRecord(_Record):
    """Scores of the controls in the best cell; None where a control is off.

    Registered conditions and nonlinear kinds of probes that a study switches on are further keys.

    Attributes:
        position: the position baseline.
        shuffled_labels: the same probe fitted on other images' labels.
        permuted_weights: the same probe on a denoiser with permuted weights.
        latents: a linear probe on the denoiser's input at the best cell's step.
        mlp: a probe with a hidden layer in the best cell, which may score higher.
    """

    position: ControlRecord
    shuffled_labels: ControlRecord | None
    permuted_weights: ControlRecord | None
    latents: ControlRecord | None = None
    mlp: ControlRecord | None = None

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ControlRecord] = Field(init=False)

    def by_name(self) -> dict[str, ControlRecord]:
        """The controls that are on, fields first."""
        records = {name: getattr(self, name) for name in type(self).model_fields}
        records |= self.model_extra or {}
        return {name: record for name, record in records.items() if record is not None}


class UndefinedRecord(_Record):
    """Samples without a defined score.

    Attributes:
        best: test samples undefined in the best cell's headline metric.
        any: scores undefined over all cells and held-out samples, headline metric.
        both_empty: test samples whose mask is empty in label and best prediction, scored 1.
        truth_empty: test samples whose label mask is empty.
    """

    best: int
    any: int
    both_empty: int = 0
    truth_empty: int = 0


class PropertyRecord(_Record):
    """Results of one property."""

    best: CellRecord
    last: CellRecord
    emergence: EmergenceRecord
    controls: ControlsRecord
    undefined: UndefinedRecord


class PhotographsRecord(_Record):
    """The class labeler on photographs that the user gave, for comparison.

    Attributes:
        confident: share with a top probability above 0.9.
        top: mean top probability.
        classes: number of photographs by top class.
    """

    count: int
    confident: float
    top: float
    classes: dict[str, int]


class ClassesRecord(_Record):
    """The class labeler on finished images, and on each step's image.

    Attributes:
        accuracy: share of all samples whose finished image is given the class of its prompt; None
            where prompts name no class.
        confident: share of finished images with a top probability above 0.9.
        by_prompt: the right class is the prompt's; else it is the finished image's own.
        recognized: share of images that the right class leads at the last step.
        recognition_step: by source, the mean step from which the right class leads and stays, over
            the images that it leads in the end.
        agreement: by source, for each step the share of images already given the class of the
            finished image.
        photographs: of the user, if some were classified.
    """

    accuracy: Interval | None
    confident: float
    by_prompt: bool
    recognized: float
    recognition_step: dict[str, Interval]
    agreement: dict[str, list[float]]
    photographs: PhotographsRecord | None = None


class Summary(_Record):
    """The contents of ``summary.json``.

    Attributes:
        labelers: by property, the labeler's score against the exact maps of the same test samples:
            the ceiling of what probes trained on its labels can be shown to know.  None where no
            exact maps are known.
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
    seconds: dict[str, float]
    bytes: int
    versions: dict[str, str]

    model_config = ConfigDict(populate_by_name=True)


def load_summary(run: Run) -> Summary:
    """The summary of a finished run.

    Raises:
        UserError: the run is not finished, or is none.
        RunError: summary.json is cut or of another release.
    """
    remedy = f"`ldmprobe report {run.url}` writes it again from the stored scores"
    return run.location.read_record("summary.json", Summary, remedy)
