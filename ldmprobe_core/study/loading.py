"""Reader of studies: a YAML file with overrides, validated; errors are one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ldmprobe_core.assets import STUDIES
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.yaml_files import read_yaml
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import LabelerSpec


def load_study(source: str, overrides: list[str] | None = None) -> Study:
    """Read a study from a YAML file or from the studies that are shipped.

    Args:
        source: path of a YAML file, or the name of a ready study such as ``tabletop``.
        overrides: ``key=value`` with dotted keys, such as ``sampling.steps=20``; values are YAML.

    Raises:
        UserError: the file does not exist or is not YAML, or a key or value is invalid.
    """
    path = Path(source)
    if os.path.isfile(source):  # unlike Path.is_file it does not raise on any string
        data = path.read_bytes()
    else:
        ready = STUDIES / f"{source}.yaml"
        if re.fullmatch(r"[\w-]{1,64}", source) is None or not ready.is_file():
            raise UserError(f"study {source!r:.80}: no such file, and no ready study of that name")
        data, path = ready.read_bytes(), Path(f"{source}.yaml")
    content = read_yaml(data, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a study is a mapping of keys to values, not a {type(content).__name__}"
        )
    for override in overrides or []:
        _set(content, override)
    return parse_study(content, str(path))


def parse_study(content: dict[str, Any], where: str = "study") -> Study:
    """Validate the content of a study.

    Args:
        where: source of the content, for messages.

    Raises:
        UserError: one sentence that names the first wrong field and its value.
    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {sentence(error)}") from None


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write it as key=value, such as sampling.steps=20")
    try:
        value = read_yaml(text.encode("utf-8", "surrogatepass"), "value")
    except UserError:
        raise UserError(f"--set {override!r}: {text!r} is not a YAML value") from None
    *path, last = key.split(".")
    labels = content.get("labels")
    for name in path:
        below = content.get(name)
        if below is None:  # absent, or null: a section that is off
            below = content[name] = {}
        if content is labels and isinstance(below, str):  # a labeler's name alone
            below = content[name] = {"name": below}
        content = below
        if not isinstance(content, dict):
            raise UserError(
                f"--set {override!r}: {name} holds a value, not keys. Fix: name a key of a section"
            )
    content[last] = value


def sentence(error: ValidationError) -> str:
    """First problem of a validation error as a sentence: field, value, remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "study"
    if not field.isprintable():  # a key may hold line ends, and a message is one line
        field = repr(field)
    if first["type"] == "extra_forbidden":
        return f"{field} is not a key of a study; {_known_keys(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}"
    value = repr(first["input"])
    value = value if len(value) <= 60 else value[:57] + "..."
    return f"{field} is {value}: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    part: Any = Study
    for name in location[:-1]:
        fields = {(f.alias or key): f for key, f in part.model_fields.items()}
        field = fields.get(str(name))  # none: a labeler of a registered property
        annotation = field.annotation if field else LabelerSpec
        # an optional part is a union with None
        part = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
    keys = ", ".join((f.alias or key) for key, f in part.model_fields.items())
    return f"{'.'.join(map(str, location[:-1])) or 'a study'} has: {keys}"
