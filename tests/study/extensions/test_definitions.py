"""Definitions of functions: which edits change them, and that processes agree on them."""

import enum
import functools
import math
import os
import re
import subprocess
import sys
import textwrap
from collections import deque
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmprobe_core.study.extensions.definitions import function_definition


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def labeled(images, **settings):
    """Function of images, for partials."""


@pytest.mark.parametrize(
    ("former", "changed"),
    [
        (Path("a"), Path("b")),
        (slice(0, 2), slice(0, 2, 2)),
        (range(3), range(4)),
        (Colour.RED, Colour.BLUE),
        (torch.float16, torch.float32),
        (torch.device("cpu"), torch.device("cuda", 1)),
        (torch.channels_last, torch.contiguous_format),
        (np.dtype("f4"), np.dtype("f8")),
        (np.dtype([("a", "f4")]), np.dtype([("b", "f4")])),
        (1j, 2j),
        (b"a", b"b"),
        (bytearray(b"a"), bytearray(b"b")),
        (frozenset("ab"), frozenset("ac")),
        (deque([1]), deque([2])),
        ([0], (0,)),
        (re.compile("a" * 300), re.compile("a" * 299 + "b")),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (date(2026, 1, 1), date(2026, 1, 2)),
        (Decimal("0.1"), Decimal("0.2")),
        (max, min),
        (torch.mean, torch.amax),
        (np.maximum, np.minimum),
        (np.max, np.min),
        (np.dot, np.vdot),
        (str.upper, str.lower),
        ({"a": 1}.get, {"a": 2}.get),
        (np, math),
        (np.array([1, None]), np.array([2, None])),
        (np.zeros(1, [("a", "f4")]), np.zeros(1, [("b", "f4")])),
        (torch.tensor([1j]), torch.tensor([2j])),
        (torch.tensor([2**53]), torch.tensor([2**53 + 1])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.bfloat16)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_definition_tells_arguments_of_a_partial_apart(former, changed):
    one, same, other = (
        repr(function_definition(functools.partial(labeled, setting=[value])))
        for value in (former, former, changed)
    )
    assert one == same != other
    assert " at 0x" not in one + other


def cell(source):
    """Run a cell of a notebook, and return its function ``mine``."""
    names = {"__name__": "a_notebook"}
    exec(textwrap.dedent(source), names)
    return names["mine"]


@pytest.mark.parametrize(
    ("former", "changed"),
    [
        (
            "def mine(images, *, a=2, b=1): return images * a + b",
            "def mine(images, *, b=1, a=2): return images * b + a",
        ),
        ("def mine(images, *a): return a", "def mine(images, a=()): return a"),
    ],
)
def test_definition_changes_with_the_names_of_parameters(former, changed):
    assert function_definition(cell(former)) != function_definition(cell(changed))


def test_definition_leaves_an_open_file_alone(tmp_path):
    """Streams have a method `detach`, as tensors do, which makes them useless."""
    with (tmp_path / "log").open("w") as stream:
        function_definition(functools.partial(labeled, log=stream))
        assert stream.write("still open") == 10


PROCESS = """
import enum, functools
from pathlib import Path
import numpy as np
from ldmprobe_core.study.extensions.definitions import function_definition

names = {"__name__": "a_notebook", "enum": enum, "functools": functools, "np": np, "Path": Path}
exec('''
class Colour(enum.Enum):
    RED = "red"
    BLUE = {"b", "l", "u", "e"}

class Settings(enum.Flag):
    ONE = enum.auto()
    TWO = enum.auto()

class Labels:
    names = {"sky", "water", "grass"}
    palette = {("a", frozenset("xyz")): Colour.RED, "b": Colour.BLUE, "c": object()}
    @functools.lru_cache
    def label(self, images, known=frozenset({"sky", "water", "grass"})):
        class Inner:
            def __init__(self):
                self.one, self.two, self.three = 1, 2, 3
        return images if images in {"sky", "water", "grass"} else known

def maker(**values):
    @functools.wraps(maker)
    def label(images, values=values, how=max):
        return values, object, how
    return label

mine = functools.partial(
    maker(a={"p", "q", "r"}, b=Colour, c=Settings.ONE | Settings.TWO, d=Labels().label),
    path=Path("weights"), kinds={str, int, Labels, Colour.RED}, ufunc=np.add,
)
''', names)
print(repr(function_definition(names["mine"])))
"""


def test_processes_of_other_hash_seeds_have_the_same_definition():
    printed = [
        subprocess.run(
            [sys.executable, "-c", PROCESS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert printed[0] == printed[1]
    assert " at 0x" not in printed[0]
