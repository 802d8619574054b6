"""Strict YAML reader that refuses duplicate keys, deep nesting and unbounded aliases."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ldmprobe_core.errors import UserError

MAX_BYTES = 4 << 20
"""Largest size of a YAML file in bytes; a study that lists 10,000 prompts is smaller."""

MAX_DEPTH = 32
"""Largest depth of nested mappings and lists; a study needs five levels."""

MAX_NODES = 100_000
"""Largest number of values after expansion of aliases, which can multiply to billions."""

MAX_BITS = 1024
"""Largest length of a whole number in bits; no float is larger."""

# PyYAML's C loader is ten times as fast as the Python one, but some builds of PyYAML lack it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key ``<<``, which adds the pairs of other mappings to a mapping."""


class _StrictLoader(_Base):
    """Safe loader that refuses duplicate keys, and reads numbers as YAML 1.2 does.

    PyYAML would silently use the last of two equal keys, and would read ``1e-7``, which is a number
    in YAML 1.2 and in JSON, as text.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace the merge key ``<<`` of a mapping by the pairs that it adds.

        Of equal keys the mapping's own is kept, else that of the first merged mapping.  The method
        of the base class compares keys by the identity of their strings in memory, so which of two
        equal keys it keeps differs from document to document.

        Raises:
            _ReadError: a key is given twice, or what is merged is not a mapping.
        """
        known = self._distinct_keys(node)
        merged = []
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                continue
            is_list = isinstance(value_node, yaml.SequenceNode)
            for part in value_node.value if is_list else [value_node]:
                if not isinstance(part, yaml.MappingNode):
                    raise _ReadError(
                        part.start_mark.line + 1,
                        "'<<' needs a mapping, but this is none. Fix: give an alias of a mapping",
                    )
                self.flatten_mapping(part)
                for key, pair in zip(self._keys(part), part.value, strict=True):
                    if key not in known:
                        known.add(key)
                        merged.append(pair)
        node.value = merged + [pair for pair in node.value if pair[0].tag != _MERGE]

    def _distinct_keys(self, node: yaml.MappingNode) -> set[Any]:
        """Return the keys of a mapping, and refuse a key that is given twice."""
        lines: dict[Any, int] = {}
        for key, (key_node, _) in zip(self._keys(node), node.value, strict=True):
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _ReadError(
                    line,
                    f"key {key!r:.40} is given twice (first on line {lines[key]}). Fix: remove one",
                )
            lines[key] = line
        return set(lines)

    def _keys(self, node: yaml.MappingNode) -> list[Any]:
        """Return the keys of a mapping, in order.

        A key such as a list, which a mapping cannot have, is replaced by its node.  The method
        `construct_mapping` of the base class raises an error for it.
        """
        keys = []
        for key_node, _ in node.value:
            is_merge = key_node.tag == _MERGE
            key = "<<" if is_merge else self.construct_object(key_node, deep=True)
            keys.append(key if _is_hashable(key) else key_node)
        return keys

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number; refuse ``010`` and ``1:30``, which YAML 1.1 reads as 8 and 90."""
        _require_decimal(node)
        value = int(super().construct_yaml_int(node))
        if value.bit_length() > MAX_BITS:
            raise _ReadError(
                node.start_mark.line + 1,
                f"a whole number of more than {MAX_BITS} bits. Fix: correct it, or quote it",
            )
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Read a number, and refuse ``1:30.5``, which YAML 1.1 reads in base 60."""
        _require_decimal(node)
        return float(super().construct_yaml_float(node))


class _KubernetesLoader(_StrictLoader):
    """Strict loader that reads ``0400`` and dates as kubectl does: as 256 and as text."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number, such as a file mode in base 8; refuse ``1:30``."""
        if re.fullmatch("[-+]?0[0-7_]+", node.value):
            return int(_Base.construct_yaml_int(self, node))
        return super().construct_yaml_int(node)


def _require_decimal(node: yaml.ScalarNode) -> None:
    """Refuse ``010`` and ``1:30``, which YAML 1.1 reads as 8 and 90.

    Raises:
        _ReadError: the number has a leading zero or a colon.
    """
    digits = node.value.lstrip("+-")
    if ":" in digits or re.fullmatch("0[0-9_]+", digits):
        raise _ReadError(
            node.start_mark.line + 1,
            f"YAML does not read {node.value!r:.40} as a decimal number. Fix: write it without "
            "leading zeros and colons, or quote it if it is text",
        )


for _loader, _tag, _construct in (
    (_StrictLoader, "int", _StrictLoader.construct_yaml_int),
    (_StrictLoader, "float", _StrictLoader.construct_yaml_float),
    (_KubernetesLoader, "int", _KubernetesLoader.construct_yaml_int),
    (_KubernetesLoader, "float", _StrictLoader.construct_yaml_float),
    (_KubernetesLoader, "timestamp", _KubernetesLoader.construct_yaml_str),
):
    _loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _ReadError(Exception):
    """Error for a problem in a YAML document, with its line number (from 1) if it is known."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(line, text)
        self.line, self.text = line, text


def read_yaml(data: bytes, name: str, *, kubernetes: bool = False) -> Any:
    """Read one YAML document.

    Args:
        data: the file's bytes, in UTF-8.
        name: name of the file, for messages.
        kubernetes: True for a resource of Kubernetes, whose whole numbers may be in base 8, such as
            the file mode ``0400``, and whose dates are text; False for a study.

    Returns:
        the document as dicts, lists and scalars; None if it is empty.

    Raises:
        UserError: the document is not YAML or not UTF-8, has a duplicate key, is too large or too
            deep, or has too many values after aliases are expanded.
    """
    try:
        if len(data) > MAX_BYTES:
            remedy = "a study. Fix: put prompts into a CSV file"
            if kubernetes:
                remedy = "a resource of Kubernetes. Fix: give a file of this resource alone"
            raise _ReadError(None, f"{len(data)} bytes are too many for {remedy}")
        return _read(data, _KubernetesLoader if kubernetes else _StrictLoader)
    except _ReadError as problem:
        line = f", line {problem.line}" if problem.line is not None else ""
        raise UserError(f"{name}{line}: {problem.text}") from None


def _read(data: bytes, loader_class: type[_StrictLoader]) -> Any:
    """Parse a YAML document; raise `_ReadError` if it is invalid or too deep."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _ReadError(
            line, f"byte {error.object[error.start]:#04x} is not UTF-8. Fix: save the file as UTF-8"
        ) from None
    try:
        _require_shallow(text)
        loader = loader_class(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _require_bounded(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text) from None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        # PyYAML raises these exceptions for values that Python cannot hold: a date such as
        # 2026-99-99, a number of 5,000 digits, or a list as a key.
        reason = str(error).partition("\n")[0]
        raise _ReadError(
            None, f"a value cannot be read ({reason:.80}). Fix: correct it, or quote it as text"
        ) from None


def _syntax_error(error: yaml.YAMLError, text: str) -> _ReadError:
    """Return the error for text that is not YAML, with the line and the parser's own words."""
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else None
    words = str(getattr(error, "problem", None) or "")
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable is not None:
        # The parser refuses the whole text for such a character, and names no line.
        line = text.count("\n", 0, unprintable.start()) + 1
        words = f"character U+{ord(unprintable.group()):04X}"
    words = f" ({words:.80})" if words.isprintable() and words else ""
    return _ReadError(line, f"this is not valid YAML{words}. Fix: correct the syntax of this line")


def _require_shallow(text: str) -> None:
    """Raise `_ReadError` for a document nested so deeply that the loader would overflow."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark: Any = event.start_mark
                raise _ReadError(
                    mark.line + 1,
                    f"values are nested more than {MAX_DEPTH} levels deep. Fix: nest fewer levels",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _require_bounded(root: yaml.Node) -> None:
    """Raise `_ReadError` for aliases that are circular or expand to too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        """Return the number of values below a node when its aliases are expanded."""
        if id(node) in open_nodes:
            raise _ReadError(
                node.start_mark.line + 1,
                "an alias refers to a value that contains it. Fix: write the value out",
            )
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                children = node.value
            elif isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(child) for child in children)
            open_nodes.discard(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise _ReadError(
                node.start_mark.line + 1,
                f"aliases expand to more than {MAX_NODES} values. Fix: use fewer aliases",
            )
        return sizes[id(node)]

    size(root)


def _is_hashable(value: Any) -> bool:
    """Return whether a value can be a key of a dictionary."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
