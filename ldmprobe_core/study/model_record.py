"""What a model folder states about itself for studies: sampling defaults and known words.

A model folder may hold ``ldmprobe.json``, an object with two optional keys::

    {"sampling": {"scheduler": "ddim", "steps": 15, "guidance": 3.0}, "words": ["a", "red", "car"]}

``sampling`` gives the values of the study's sampling keys that a study leaves out.  ``words`` lists
all words that the model was trained on; planning names prompts with other words.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.study.sections import Sampling, Section

RECORD = "ldmprobe.json"
"""Name of the record's file in a model folder."""

EMBEDDED = "tabletop"
"""Name of the embedded model, as ``model.source``."""

_DEFAULTED = ("scheduler", "steps", "guidance")


class ModelRecord(Section):
    """Content of a model folder's record.

    Attributes:
        sampling: values of the keys scheduler, steps and guidance that a study leaves out.
        words: words that the model was trained on, in lowercase; empty if any word is known.
    """

    sampling: dict[str, Any] = Field(default_factory=dict)
    words: tuple[str, ...] = Field((), strict=False)

    @field_validator("sampling")
    @classmethod
    def _usable(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not set(value) <= set(_DEFAULTED):
            raise ValueError(f"sampling has {', '.join(value)}; it may have {_DEFAULTED}")
        Sampling.model_validate(value)
        return value

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of a text that the model was not trained on, in lowercase, each once."""
        if not self.words:
            return ()
        words = re.findall(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*", text.lower())
        return tuple(word for word in dict.fromkeys(words) if word not in self.words)


def read_model_record(source: str, revision: str | None = None) -> ModelRecord:
    """Record of a model, by its name in a study; an empty record if the model has none.

    The default scheduler of a flow-matching model without a record is ``flow``, the only one that
    fits it.

    Args:
        source: ``tabletop``, path of a folder, or hub id; only files on this machine are read.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: the record is not JSON, or has other keys or values than documented.
    """
    path = _find(source, revision, RECORD)
    if path is None:
        return _record_of_scheduler(_find(source, revision, "scheduler/scheduler_config.json"))
    try:
        return ModelRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(f"{path} is not a usable record ({problem}). Fix: correct it") from None


def _record_of_scheduler(config: Path | None) -> ModelRecord:
    try:
        name = json.loads(config.read_bytes())["_class_name"] if config else ""
    except (OSError, ValueError, KeyError, TypeError):
        name = ""  # planning names the broken config
    return ModelRecord(sampling={"scheduler": "flow"} if str(name).startswith("FlowMatch") else {})


def _find(source: str, revision: str | None, name: str) -> Path | None:
    """A file of a model, if it is on this machine."""
    folder = MODEL_FOLDER if source == EMBEDDED else Path(source).expanduser()
    if (folder / name).is_file():
        return folder / name
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return None
    from huggingface_hub import try_to_load_from_cache  # slow to import, and rarely needed

    cached = try_to_load_from_cache(source, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
