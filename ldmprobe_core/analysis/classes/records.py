"""Records of the class labeler's results in ``summary.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ldmprobe_core.probing.inference.bootstrap import Interval

CONFIDENT = 0.9
"""Probability above which the top class of an image counts as confident."""

PHOTOGRAPHS = "photographs.json"
"""File of a run with the record of classified photographs."""

TIE = "(tie)"
"""Category of a photograph in which several classes have the highest probability."""


class _Record(BaseModel):
    """Pydantic base class of the class records; an unknown key is a validation error."""

    model_config = ConfigDict(extra="forbid")


class PhotographRecord(_Record):
    """Top class of one photograph.

    Attributes:
        name: name of the file.
        category: class with the highest probability; ``(tie)`` if several have it.
        probability: its probability.
    """

    name: str
    category: str
    probability: float


class PhotographsRecord(_Record):
    """Results of the class labeler on a folder of the user's photographs.

    Attributes:
        count: number of photographs.
        confident: fraction of them with a top probability above 0.9.
        top: mean top probability.
        classes: number of photographs by top class.
        known: number of classes that the labeler knows; 0 in records of earlier releases.
        photographs: top class of each photograph.
    """

    count: int
    confident: float
    top: float
    classes: dict[str, int]
    known: int = 0
    photographs: list[PhotographRecord] = []


class ClassesRecord(_Record):
    """Results of the class labeler on final images and on the images of each step.

    Attributes:
        accuracy: fraction of samples whose final image gets the class of its prompt; None if
            prompts name no class.
        confident: fraction of final images with a top probability above 0.9.
        by_prompt: whether the target class is the prompt's; otherwise it is the top class of the
            final image.
        samples: number of images with step images, to which the following values refer.
        recognized: fraction of images whose target class leads in the decoded latents of the last
            step.
        recognized_clean: the same in the predicted clean image; None in records of earlier
            releases.
        recognition_step: by source of step images, the mean step from which the target class leads
            to the end, over the images in which it leads at the last step of that source.
        agreement: by source of step images, for each step the fraction of images whose top class is
            that of the final image; None at steps without step images.  Where several classes have
            the highest probability, there is no top class, here as above.
        photographs: results on the user's photographs; None if there are none.
    """

    accuracy: Interval | None
    confident: float
    by_prompt: bool
    samples: int
    recognized: float
    recognized_clean: float | None = Field(default=None, exclude_if=lambda value: value is None)
    recognition_step: dict[str, Interval]
    agreement: dict[str, list[float | None]]
    photographs: PhotographsRecord | None = None
