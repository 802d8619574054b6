"""Base class of a study's sections, and types for their names, paths and bounded numbers.

Every number of a study has a largest value.  It is far above useful values, and keeps a slip of the
pen such as 1e30 from filling the memory or from turning images into noise without a word.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ldmprobe_core.errors import UserError


class Section(BaseModel):
    """Base class of a study's sections, which are frozen, strict and refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


MAX_SEED = 2**63 - 1
"""Largest seed that can be stored, as int64."""

MAX_SAMPLES = 1_000_000
"""Largest number of samples of a study, which are all listed in memory while it is planned."""

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _number(value: Any) -> Any:
    """Convert a text with an exponent, such as ``1e-3``, to a float."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


EXPONENT = BeforeValidator(_number)
"""Conversion of a text such as ``1e-3`` to a float; YAML 1.1 reads it as text, not as a number."""

SampleCount = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _slug(value: str) -> str:
    """Check that a text can be the name of a folder."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError(
            f"{value!r:.80} cannot name a folder. Fix: use 1 to 63 lowercase letters, digits and "
            "dashes"
        )
    return value


Slug = Annotated[str, AfterValidator(_slug)]


def user_path(text: str) -> Path:
    """Return a path in which ``~`` is replaced by the home folder.

    If the path begins with the name of a user who does not exist, as in ``~name/x``, it is returned
    unchanged; no such path exists, so the caller's check for the file fails as for any other.
    """
    return Path(os.path.expanduser(text))


def local_path(text: str, field: str) -> Path:
    """Return the path of a local file or folder to write; ``~`` is the home folder.

    Args:
        text: the path.
        field: name of the setting that gives it, for messages.

    Raises:
        UserError: it is an address such as ``s3://bucket/file``.
    """
    # `Path` removes the second slash of an address.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(
            f"{field}: {text!r:.80} is no local path. Fix: give one, and copy what is written there"
        )
    return user_path(text)


def require_readable_files(folder: Path, field: str) -> None:
    """Check that a model's folder holds no pipes or devices, at which a reader would block.

    Args:
        folder: folder, which is searched with its subfolders.
        field: name of the setting that gives the folder, for messages.

    Raises:
        UserError: there is a pipe, a device or a socket.
    """
    for path in sorted(folder.rglob("*")):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{field}: {path} is a pipe or a device. Fix: remove it")


_PATHS = re.compile(
    r"model\.(source|config)|images\.folder|prompts\.files.*|labels\..*|execution\.cluster"
)
_MAX_PATH, _MAX_PATH_PART = 4096, 255
"""Largest lengths in bytes of a path and of one of its parts, on the usual file systems."""


def require_storable_text(name: str, text: str) -> None:
    """Check that a text can be stored in files and databases, and that a path is not too long.

    Args:
        name: dotted key of the text in a study.
        text: value of the key.

    Raises:
        ValueError: the text has a NUL or half of a surrogate pair, or it is a path and too long.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{name} holds a character that files and databases do not accept (NUL, or "
            "half of a surrogate pair). Fix: remove it"
        )
    size, longest = len(text.encode()), max(len(part.encode()) for part in text.split("/"))
    if _PATHS.fullmatch(name) and (size > _MAX_PATH or longest > _MAX_PATH_PART):
        raise ValueError(f"{name} is too long for a path ({text!r:.60}). Fix: correct it")
