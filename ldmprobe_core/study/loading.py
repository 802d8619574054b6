"""Reader of studies: it parses YAML, applies overrides, and explains the first error."""

from __future__ import annotations

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ldmprobe_core.assets import STUDIES
from ldmprobe_core.errors import UserError
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.yaml_files import read_yaml
from ldmprobe_core.study.schema import Study


def load_study(source: str | os.PathLike[str], overrides: list[str] | None = None) -> Study:
    """Read a study from a YAML file, or a built-in study by its name.

    Args:
        source: path of a YAML file, or name of a study in this package, such as ``tabletop``.
        overrides: texts ``key=value`` with a dotted key and a YAML value, such as
            ``sampling.steps=20``; they replace values of the file.

    Raises:
        UserError: the file does not exist or is not YAML, or a key or value is invalid.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(
            f"study {source!r:.80}: not a path ({type(source).__name__}). Fix: give a path, or the "
            "name of a built-in study, such as tabletop"
        )
    source = os.fspath(source)
    path = Path(source)
    # `source` may be any string.  For a very long one, Path.is_file raises an OSError, but
    # os.path.isfile returns False.
    if os.path.isfile(source):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: the study cannot be read ({error.strerror}). Fix: check the file and its "
                "permissions"
            ) from None
    else:
        ready = STUDIES / f"{source}.yaml"
        if re.fullmatch(r"[\w-]{1,64}", source) is None or not ready.is_file():
            raise UserError(
                f"study {source!r:.80}: no such file, and no built-in study of that name. Fix: "
                "check the path, or use the name of a built-in study, such as tabletop"
            )
        data, path = ready.read_bytes(), Path(f"{source}.yaml")
    content = read_yaml(data, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a study is a mapping of keys to values, but this is {_shown(content)}. Fix: "
            "write the study as key: value lines"
        )
    for override in overrides or []:
        set_key(content, override)
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
        field_problem_and_remedy = sentence(error)
        raise UserError(f"{where}: {field_problem_and_remedy}") from None


def set_key(content: dict[str, Any], override: str) -> None:
    """Set a key of a study's content from a text such as ``sampling.steps=20``, in place.

    Raises:
        UserError: the text is not ``key=value`` with a YAML value, or the key is below a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"--set {override!r}: not of the form key=value. Fix: write it as in sampling.steps=20"
        )
    try:
        value = read_yaml(text.encode("utf-8", "surrogatepass"), "value")
    except UserError as error:
        raise UserError(
            f"--set {override!r:.80}: {text!r:.40} is not a YAML value ({error}). Fix: put text in "
            "quotes"
        ) from None
    *path, last = key.split(".")
    labels = content.get("labels")
    for name in path:
        below = content.get(name)
        # The key may be in a section that the file leaves out or sets to null, so an empty section
        # is created for it.
        if below is None:
            below = content[name] = {}
        # The study may give a labeler by its name alone.  The name is converted to a mapping, so
        # that the override can set another key of this labeler.
        if content is labels and isinstance(below, str):
            below = content[name] = {"name": below}
        content = below
        if not isinstance(content, dict):
            raise UserError(
                f"--set {override!r}: {name} holds a value, so it has no keys. Fix: name a "
                "key of a section"
            )
    content[last] = value


def sentence(error: ValidationError, model: type[BaseModel] = Study, noun: str = "study") -> str:
    """Convert the first problem of a validation error to a sentence with field and value.

    Args:
        error: error of the validation of settings.
        model: class of the settings, whose keys the sentence lists if a key is unknown.
        noun: noun for these settings that takes the article "a" or "an", such as ``study``.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    field = _field(first["loc"])
    if first["type"] == "extra_forbidden":
        name = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        known = _known_keys(first["loc"], model, name)
        return f"{field or repr('')} is not a key of {name}; {known}. Fix: use one of these keys"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{field}: {message}" if field else message
    if first["type"] == "missing":
        return f"{field}: this key is missing. Fix: add it"
    if first["type"] == "invalid_key":
        return f"{field}: this key is not text. Fix: put it in quotes, or remove it"
    # A key that takes values of several types has a problem for each of them.  The one farthest
    # inside the value is of the type that the user meant, such as a list with a wrong item.
    same = [one for one in problems if f"{_field(one['loc'])}.".startswith(f"{field}.")]
    inmost = max(_field(one["loc"]).count(".") for one in same)
    same = [one for one in same if _field(one["loc"]).count(".") == inmost]
    words = [_in_words(one["type"], one["msg"], one.get("ctx", {})) for one in same]
    remedies = ", or ".join(dict.fromkeys(remedy for _, remedy in words))
    name = _field(same[0]["loc"]) or noun
    return f"{name} is {_shown(same[0]['input'])}: {words[0][0]}. Fix: give {remedies}"


def _field(location: tuple[int | str, ...]) -> str:
    """Return the dotted key of a place in a study."""
    # For a key that takes several types, pydantic adds the tried type, such as ``tuple[int,...]``.
    tried = re.compile(
        r"(literal|tuple|list|dict|function-(before|after|wrap|plain))\[.*\]|constrained-str|\[key\]",
        re.DOTALL,
    )
    field = ".".join(str(part) for part in location if not tried.fullmatch(str(part)))
    # A key in the file may contain line ends.  A message must be one line, so such a key is quoted.
    return field if field.isprintable() else repr(field)


def _shown(value: Any) -> str:
    """Return a value of a study for a message, as YAML writes it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    try:
        text = value.isoformat() if isinstance(value, date) else repr(value)
    except (ValueError, RecursionError):
        # Python raises a ValueError when it converts a number of more than 4,300 digits to text.
        return "a value that is too long to print"
    return text if len(text) <= 60 else text[:57] + "..."


_PROBLEMS = {
    "string_type": ("this is not text", "text, in quotes if it looks like a number or a date"),
    "string_too_short": ("the text is too short", "{min_length} or more characters"),
    "int_type": ("this is not a whole number", "a whole number, without quotes"),
    "float_type": ("this is not a number", "a number, without quotes"),
    "finite_number": ("this is not a finite number", "a finite number"),
    "bool_type": ("this is neither true nor false", "true or false"),
    "tuple_type": ("this is not a list", "a list, such as [a, b]"),
    "list_type": ("this is not a list", "a list, such as [a, b]"),
    "too_short": ("the list is too short", "{min_length} or more values"),
    "too_long": ("the list is too long", "at most {max_length} values"),
    "dict_type": ("this is not a mapping", "keys and values, such as {{key: value}}"),
    "model_type": ("this is not a mapping", "keys and values, such as {{key: value}}"),
    "greater_than_equal": ("the value is too small", "{ge} or more"),
    "greater_than": ("the value is too small", "more than {gt}"),
    "less_than_equal": ("the value is too large", "{le} or less"),
    "less_than": ("the value is too large", "less than {lt}"),
    "literal_error": ("there is no such choice", "{expected}"),
}
"""Problem and remedy, after the word "give", of each type of error that pydantic finds."""


def _in_words(kind: str, message: str, context: dict[str, Any]) -> tuple[str, str]:
    """Return the problem and the remedy of one of pydantic's errors in words of YAML.

    Args:
        kind: pydantic's name of the error, such as ``int_type``.
        message: pydantic's message, used for an error that has no words of its own here.
        context: limits that the error names.
    """
    if kind not in _PROBLEMS:
        return f"{message[0].lower()}{message[1:]}", "another value"
    problem, remedy = _PROBLEMS[kind]
    return problem, remedy.format_map(context)


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel], name_of_all: str) -> str:
    """List, for a message, the valid keys of the section in which an unknown key was given."""
    part: Any = model
    # Indices of list items are skipped, because all items of a list have the same keys.
    for name in [name for name in location[:-1] if isinstance(name, str)]:
        if get_origin(part) is dict:
            part = get_args(part)[-1]
            continue
        fields = {(f.alias or key): f for key, f in part.model_fields.items()}
        # A name that is not a field of the section is a key of `labels`: the name of a registered
        # property, whose value is a labeler.
        field = fields.get(str(name))
        annotation = field.annotation if field else LabelerSpec
        members = () if get_origin(annotation) is dict else get_args(annotation)
        # The type of an optional section is a union of the section's class and None, so the class
        # is the member that is not None.
        part = next((kind for kind in members if kind is not type(None)), annotation)
    keys = ", ".join((f.alias or key) for key, f in part.model_fields.items())
    return f"{'.'.join(map(str, location[:-1])) or name_of_all} has: {keys}"
