"""What an intervention edits, where, and how: its validated settings."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.study.loading import sentence

EDIT_CONDITIONS = ("edited", "random", "shuffled")
EDIT_METRICS = {"foreground": ("dice",), "depth": ("spearman", "rmse")}
DECODER = ("up_blocks.*",)

DEFAULT_CONFIDENCE = 0.98
DEFAULT_STEPS = {"foreground": 5, "depth": 3}


class Intervention(BaseModel):
    """What is edited, where, and how.  None takes the paper's setting for the property.

    Attributes:
        prop: the property that is written.
        targets: each sample is edited towards each of them.
        samples: number of held-out test samples, the first by index; or ``chosen`` by index.
        method: ``exact`` (closed form) or ``adam`` (the paper's descent).
        steps: the first so many are edited: 5 for foreground, 3 for depth.
        layers: globs over the run's layers: the decoder's for foreground, all for depth.
        confidence: the probability that a logistic probe is to read inside the mask, and one less
            it outside.
        strength: share of the way to the target that an exact edit goes, at every cell.
        metric: in which a change is small: ``l2``, or the activations' own ``covariance``.
        controls: also edit at random and through shuffled-label probes.
        part: whose samples are edited: test, or validation, to find settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prop: Literal["foreground", "depth"] = "foreground"
    targets: tuple[Target, ...] = (Target(dx=0.2),)
    samples: Annotated[int, Field(ge=1)] = 8
    chosen: tuple[int, ...] | None = None
    method: Literal["exact", "adam"] = "exact"
    steps: Annotated[int, Field(ge=1)] | None = None
    layers: tuple[str, ...] | None = None
    kind: Literal["ridge", "logistic", "adam"] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = DEFAULT_CONFIDENCE
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    metric: Literal["l2", "covariance"] = "covariance"
    iterations: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    controls: bool = True
    part: Literal["test", "validation"] = "test"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _distinct(self) -> Intervention:
        if len(set(self.targets)) < len(self.targets) or not self.targets:
            raise ValueError("targets: name at least one, and each once")
        if self.method == "adam" and (self.strength, self.confidence) != (1.0, DEFAULT_CONFIDENCE):
            raise ValueError("strength and confidence are of exact edits: leave them out with adam")
        return self

    @property
    def name(self) -> str:
        """Folder of its results in the run: property, method and a hash of the rest."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.prop}-{self.method}-{digest}"


def parse_intervention(content: dict[str, Any]) -> Intervention:
    """Validate a mapping.

    Raises:
        UserError: one sentence naming the first wrong field and its value.
    """
    try:
        return Intervention.model_validate(content)
    except ValidationError as error:
        raise UserError(f"intervention: {sentence(error)}") from None
