"""Cache of the Zarr metadata of runs in this process; the keys are the runs' URLs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from zarr.core.buffer import Buffer

documents: dict[str, dict[str, Buffer]] = {}
members: dict[str, dict[str, tuple[str, ...]]] = {}
_facts: dict[str, dict[str, Any]] = {}
"""Values that do not change after a run is created, such as its layers, by URL and name.

With `documents` and `members`, this saves nine of ten requests to an object store.  The root's
attributes and the data of arrays are not cached.
"""


def invalidate_node(url: str, node: str) -> None:
    """Drop cached metadata of a group or array, its descendants, and its parent's member list."""
    cached, listed = documents.get(url, {}), members.get(url, {})
    for key in [key for key in cached if key.startswith(f"{node}/")]:
        del cached[key]
    for group in [g for g in listed if g == node or g.startswith(f"{node}/")]:
        del listed[group]
    listed.pop(node.rpartition("/")[0], None)


def invalidate_cache(url: str) -> None:
    """Drop all cached metadata of a URL; call this when a run is created there."""
    for known in (documents, members, _facts):
        known.pop(url, None)


def cached_fact(url: str, fact: str, find: Callable[[], Any]) -> Any:
    """Return a cached constant of a run, such as its layers; the first call computes it."""
    facts = _facts.setdefault(url, {})
    if fact not in facts:
        facts[fact] = find()
    return facts[fact]


async def cached_fact_async(url: str, fact: str, find: Callable[[], Awaitable[Any]]) -> Any:
    """Return a cached constant of a run, as `cached_fact` does, but await the computation."""
    facts = _facts.setdefault(url, {})
    if fact not in facts:
        found = await find()
        facts.setdefault(fact, found)
    return facts[fact]
