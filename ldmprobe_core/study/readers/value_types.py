"""Types of names and numbers in a study, with their ranges.

Every number of a study has a largest value.  It is far above useful values, and keeps a slip of the
pen such as 1e30 from filling the memory or from turning images into noise without a word.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_SEED = 2**63 - 1
"""Largest seed that can be stored, as int64."""

MAX_SAMPLES = 1_000_000
"""Largest number of samples of a study, which are all listed in memory while it is planned."""

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


EXPONENT = BeforeValidator(_number)
"""Conversion of a text such as ``1e-3`` to a float; YAML 1.1 reads it as text, not as a number."""

SampleCount = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError(
            f"{value!r:.80} must be 1 to 63 lowercase letters, digits and dashes, since it names "
            "a folder"
        )
    return value


Slug = Annotated[str, AfterValidator(_slug)]
