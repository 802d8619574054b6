"""Write ``study.md``: all keys of a study, from the fields and docstrings of its sections.

python docs/write_study.py
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from ldmprobe_core.study import probe_sections, sections
from ldmprobe_core.study.schema import Study

PAGE = Path(__file__).with_name("study.md")

HEAD = """# Keys of a study

A study is a YAML file. Every key has a default, and an unknown key is refused; `ldmprobe check`
reads a file without carrying it out, and `study.json` of a run has the values of all keys. On the
command line `--set sampling.steps=30` sets one key, in Python
`lp.load_study("tabletop", {"sampling.steps": 30})`. None is `null` in YAML. (`python
docs/write_study.py` writes this page.)

**A key that is left out means the embedded world**, also for another model: `prompts.set` its
captions, `labels` its labelers.
"""

BEFORE_VALIDATION = {
    "mapping (samples) or null": "true, false, or mapping (samples)",
    "mapping (name, weights, revision) or null": (
        "name of a labeler, mapping (name, weights, revision), or null"
    ),
    "mapping (all, train, test) or null": "path, mapping (train, test), or null",
}
"""Values that a section converts before it checks them, by what the schema says."""

WRITTEN_BY_THE_PROGRAM = {"content_hash"}
"""Keys that users do not set."""


def attributes(section: type) -> tuple[str, dict[str, str]]:
    """Return a section's description without its attributes, and that of each attribute."""
    text, _, listed = inspect.cleandoc(section.__doc__ or "").partition("\n\nAttributes:\n")
    found: dict[str, str] = {}
    for entry in re.findall(r"^    (?=\S)(.*(?:\n     .*|\n$)*)", listed, re.MULTILINE):
        names, _, meaning = entry.partition(": ")
        found |= dict.fromkeys(names.split(", "), plain(meaning))
    return plain(text), found


def plain(text: str) -> str:
    """Return the text of a docstring as Markdown on one line."""
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Describe the values that a key takes, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(values(one, definitions) for one in schema["anyOf"])
    if "$ref" in schema:
        keys = definitions[schema["$ref"].rpartition("/")[2]]["properties"]
        return f"mapping ({', '.join(keys)})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "value")
    if kind == "array":
        return f"list of {values(schema['items'], definitions).replace('number', 'numbers')}"
    if "propertyNames" in schema:
        return f"mapping ({', '.join(schema['propertyNames']['enum'])})"
    names = {"boolean": "true or false", "integer": "whole number", "string": "text",
             "object": "mapping", "null": "null"}  # fmt: skip
    return names.get(kind, kind) + limits(schema)


def limits(schema: dict[str, Any]) -> str:
    """Describe the range of a number; an end that does not belong to it is named."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    text = f" above {above:g}" if above is not None else "" if low is None else f" from {read(low)}"
    return text + (
        f", below {below:g}" if below is not None else "" if high is None else f" to {read(high)}"
    )


def read(number: float) -> str:
    """Return a number as people read it."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def rows(prefix: str, section: Any, definitions: dict[str, Any]) -> list[str]:
    """Return table rows of a section's keys, those of its sections after each of them."""
    schema = definitions[section.__name__] if section is not Study else Study.model_json_schema()
    meanings, found = attributes(section)[1], []
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key in WRITTEN_BY_THE_PROGRAM or (section is Study and name not in meanings):
            continue
        content = schema["properties"][key]
        default = "required"
        if not field.is_required():
            text = json.dumps(short(content.get("default", {})))
            default = f"`{text.replace(chr(34), '') if text != chr(34) * 2 else text}`"
        inner = [definitions_name(one) for one in content.get("anyOf", [content])]
        inner = [one for one in inner if one and one != "LabelerSpec"]
        takes = values(content, definitions)
        takes = BEFORE_VALIDATION.get(takes, takes)
        found.append(f"| `{prefix}{key}` | {default} | {takes} | {meanings[name]} |")
        for one in inner:
            part = getattr(sections, one, None) or getattr(probe_sections, one, None)
            if part is not None:
                found += rows(f"{prefix}{key}.", part, definitions)
    return found


def definitions_name(schema: dict[str, Any]) -> str:
    """Return the name of the section that a schema refers to; empty for other values."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def short(default: Any) -> Any:
    """Return a default with labelers by name alone, and nothing that is None."""
    if isinstance(default, dict):
        left = {key: short(value) for key, value in default.items() if value is not None}
        return left["name"] if set(left) == {"name"} else left
    return default


def page() -> str:
    """Return the page."""
    definitions = Study.model_json_schema()["$defs"]
    head = "| key | default | values | meaning |\n| --- | --- | --- | --- |"
    lines = [HEAD, head, *rows("", Study, definitions), ""]
    for name, field in Study.model_fields.items():
        types = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [t for t in types if isinstance(t, type) and t.__name__ in definitions]
        if name == "properties" or not found:
            continue
        about = attributes(found[0])[0]
        lines += [f"## `{name}`", "", about, "", head, *rows(f"{name}.", found[0], definitions), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
