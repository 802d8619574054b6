"""Reader of studies, which validates a YAML file and overrides and explains the first error."""

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
    """Read a study from a YAML file, or by name from the studies in this package.

    Args:
        source: path of a YAML file, or name of a study in this package, such as ``tabletop``.
        overrides: texts ``key=value`` with a dotted key and a YAML value, such as
            ``sampling.steps=20``; they replace values of the file.

    Raises:
        UserError: the file does not exist or is not YAML, or a key or value is invalid.
    """
    path = Path(source)
    # Some strings, such as very long ones, would make Path.is_file raise an error.
    if os.path.isfile(source):
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
    """Build a study from the content of a YAML or JSON file, and validate it.

    Args:
        content: values by key.
        where: name of the file, for messages.

    Raises:
        UserError: a key or value is invalid; the message names the first such field.
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
    except UserError as error:
        raise UserError(f"--set {override!r:.80}: not a YAML value ({error})") from None
    *path, last = key.split(".")
    labels = content.get("labels")
    for name in path:
        below = content.get(name)
        # A section that is absent or null becomes an empty one.
        if below is None:
            below = content[name] = {}
        # A labeler that is given by its name alone becomes a mapping.
        if content is labels and isinstance(below, str):
            below = content[name] = {"name": below}
        content = below
        if not isinstance(content, dict):
            raise UserError(
                f"--set {override!r}: {name} holds a value, not keys. Fix: name a key of a section"
            )
    content[last] = value


def sentence(error: ValidationError) -> str:
    """Message about the first problem of a validation error, with the field and its value."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "study"
    # A key may contain line ends, but a message must be one line.
    if not field.isprintable():
        field = repr(field)
    if first["type"] == "extra_forbidden":
        return f"{field} is not a key of a study; {_known_keys(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{field}: {message}"
    try:
        value = repr(first["input"])
    except (ValueError, RecursionError):
        # Python does not print whole numbers of more than 4,300 digits.
        value = "a value that is too long to print"
    value = value if len(value) <= 60 else value[:57] + "..."
    return f"{field} is {value}: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    part: Any = Study
    for name in location[:-1]:
        fields = {(f.alias or key): f for key, f in part.model_fields.items()}
        # A key that is no field names a registered property, whose value is a labeler.
        field = fields.get(str(name))
        annotation = field.annotation if field else LabelerSpec
        # An optional section is annotated as a union with None.
        part = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
    keys = ", ".join((f.alias or key) for key, f in part.model_fields.items())
    return f"{'.'.join(map(str, location[:-1])) or 'a study'} has: {keys}"
