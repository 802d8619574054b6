"""Reader of ``ldmprobe.json`` in a model folder: sampling defaults and known prompt words.

The record is the file ``ldmprobe.json`` in a model folder, an object with two optional keys::

    {"sampling": {"scheduler": "ddim", "steps": 15, "guidance": 3.0}, "words": ["a", "red", "car"]}

``sampling`` gives defaults for sampling keys that a study leaves out.  ``words`` lists all words
that the model was trained on; planning warns about prompts that contain other words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.study.readers.hub_cache import is_hub_id
from ldmprobe_core.study.readers.value_types import Section, user_path
from ldmprobe_core.study.sections import Sampling

RECORD = "ldmprobe.json"
"""File name, in a model folder, of the record of its sampling defaults and known words."""

EMBEDDED = "tabletop"
"""Value of ``model.source`` for the embedded model."""

_FLOW_SOLVERS = {"DPMSolverMultistepScheduler": "dpm++", "UniPCMultistepScheduler": "unipc"}
"""Schedulers that can sample flow-matching models, if their config has ``use_flow_sigmas``."""

_FEW_STEPS: dict[str, dict[str, Any]] = {
    "LCMScheduler": {"scheduler": "lcm", "steps": 4},
    "TCDScheduler": {"scheduler": "tcd", "steps": 4, "guidance": 1.0},
}
"""Sampling defaults of few-step models, by the class of their scheduler."""

_DEFAULTED = ("scheduler", "steps", "guidance")


_WORD_OR_SIGNS = r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*|[^\w\s]+"
"""Pattern of a word, which may have hyphens and apostrophes, or of the signs between two words."""


class ModelRecord(Section):
    """Content of ``ldmprobe.json`` in a model folder.

    Attributes:
        sampling: values of the keys scheduler, steps and guidance that a study leaves out.
        words: words that the model was trained on, which are compared in lowercase; empty if it
            accepts any word.
    """

    sampling: dict[str, Any] = Field(default_factory=dict)
    words: tuple[str, ...] = Field((), strict=False)

    @field_validator("sampling")
    @classmethod
    def _usable(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Check that the sampling defaults are known keys with valid values."""
        unknown = sorted(set(value) - set(_DEFAULTED))
        if unknown:
            raise ValueError(
                f"sampling: unknown keys ({', '.join(unknown)}). Fix: use only "
                f"{', '.join(sorted(_DEFAULTED))}"
            )
        Sampling.model_validate(value)
        return value

    @field_validator("words")
    @classmethod
    def _lowercase(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        """Convert the words to lowercase, in which those of a prompt are compared."""
        return tuple(word.lower() for word in words)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Return the distinct words of a text, in lowercase, on which the model was not trained.

        Symbols, such as emoji, + and $, count as words, and punctuation does not.
        """
        if not self.words:
            return ()
        words = (_without_punctuation(word) for word in re.findall(_WORD_OR_SIGNS, text.lower()))
        return tuple(word for word in dict.fromkeys(words) if word and word not in self.words)


def _without_punctuation(word: str) -> str:
    """Return a word as it is, and of signs beside words the symbols alone, if there are any."""
    if word[0].isalnum():
        return word
    categories = {sign: unicodedata.category(sign)[0] for sign in word}
    signs = "".join(sign for sign in word if categories[sign] != "P")
    return signs if "S" in categories.values() else ""


def read_model_record(source: str, revision: str | None = None) -> ModelRecord:
    """Read ``ldmprobe.json`` of a model; without this file, return an empty record.

    The empty record of a model whose scheduler no other can replace has that scheduler as its
    default: ``flow`` for flow-matching models, ``lcm`` or ``tcd`` with 4 steps for those models.

    Args:
        source: ``tabletop``, path of a folder, or hub id; nothing is downloaded.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: the record is not JSON, or has invalid keys or values.
    """
    path = _find(source, revision, RECORD)
    if path is None:
        return _record_of_scheduler(_find(source, revision, "scheduler/scheduler_config.json"))
    try:
        return ModelRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{path} is not a usable record ({problem}). Fix: correct this file"
        ) from None


def _record_of_scheduler(config: Path | None) -> ModelRecord:
    """Derive sampling defaults from a model's scheduler config, if it has no ``ldmprobe.json``."""
    try:
        content = json.loads(config.read_bytes()) if config else {}
        name, is_flow = str(content["_class_name"]), bool(content.get("use_flow_sigmas"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A damaged config is ignored here, because planning will report it in detail.
        return ModelRecord()
    if name.startswith("FlowMatch"):
        return ModelRecord(sampling={"scheduler": "flow"})
    if is_flow and name in _FLOW_SOLVERS:
        return ModelRecord(sampling={"scheduler": _FLOW_SOLVERS[name]})
    return ModelRecord(sampling=_FEW_STEPS.get(name, {}))


def _find(source: str, revision: str | None, name: str) -> Path | None:
    """Return the path of a file of a model; None if the file is not on this machine."""
    folder = MODEL_FOLDER if source == EMBEDDED else user_path(source)
    if (folder / name).is_file():
        return folder / name
    if folder.exists() or not is_hub_id(source):
        return None
    # Only models from the hub need this slow import, so it is not at the top of the module.
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
