"""Per-process cache of a run's metadata, by the run's URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zarr.core.buffer import Buffer

_documents: dict[str, dict[str, Buffer]] = {}
_members: dict[str, dict[str, tuple[str, ...]]] = {}
_facts: dict[str, dict[str, Any]] = {}
"""What is laid out once and never changes, by the run's URL: an object store is asked for it once
a process, not at every opening of an array (nine requests in ten).  The root's own attributes and
all data are always asked for.
"""


def _forget(url: str, node: str) -> None:
    """Metadata of a node, and of all below it, was changed; its parent's members too."""
    documents, members = _documents.get(url, {}), _members.get(url, {})
    for key in [key for key in documents if key.startswith(f"{node}/")]:
        del documents[key]
    for place in [p for p in members if p == node or p.startswith(f"{node}/")]:
        del members[place]
    members.pop(node.rpartition("/")[0], None)


def forget(url: str) -> None:
    """A run is laid out at this place, maybe anew: what was known of it is over."""
    for known in (_documents, _members, _facts):
        known.pop(url, None)


def known(url: str, fact: str, find: Callable[[], Any]) -> Any:
    """What is laid out with a run and never changes, such as its layers: found once."""
    facts = _facts.setdefault(url, {})
    if fact not in facts:
        facts[fact] = find()
    return facts[fact]
