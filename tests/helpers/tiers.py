"""Division of the cases of one test between ``make test`` and ``make test-slow``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], keep: Iterable[int]) -> list[Any]:
    """Return parameters of a test of which all but some are marked slow.

    Args:
        cases: values of one parameter, or tuples of several.
        keep: positions of the cases that ``make test`` runs.
    """
    kept = set(keep)
    return [
        case
        if position in kept
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for position, case in enumerate(cases)
    ]
