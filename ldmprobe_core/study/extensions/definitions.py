"""Definitions of a user's functions, which tell whether two processes have the same function."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import CellType, CodeType, ModuleType
from typing import Any

import numpy as np


def module_with_file(name: str | None) -> ModuleType | None:
    """Return the imported module of a name; None if no file holds it, as in a notebook."""
    module = sys.modules.get(name or "")
    file = getattr(module, "__file__", None)
    return module if file and Path(file).is_file() else None


def is_made_in_function(value: Any) -> bool:
    """Return whether a function or class stands in another function, whose values it may have.

    It may have them as enclosed variables or as defaults, so that the file does not say them.
    """
    return "<locals>" in getattr(value, "__qualname__", "") or bool(
        getattr(value, "__closure__", None)
    )


def function_definition(value: Any, around: frozenset[int] = frozenset()) -> object:
    """Return nested tuples and texts that change with what defines a function.

    These are the code of its functions, their defaults, the values that they have from a function
    around them, and the arguments of partials.  Code that a file holds, such as a library's
    decorator, stands with its name alone.  Global variables, such as weights in a notebook, and the
    attributes of instances are not part of it: an instance stands with its type, but plain values
    (numbers, texts, paths, data types), containers, arrays and tensors with their content.

    Equal definitions have equal `repr` in all processes.

    Args:
        value: function, class, instance of a class, or a value that one of these has.
        around: ids of the values that contain this one.
    """
    if id(value) in around:
        return "itself"

    def inner(*values: Any) -> list[object]:
        return [function_definition(one, around | {id(value)}) for one in values]

    if isinstance(value, functools.partial):
        return inner(value.func, value.args, value.keywords)
    if isinstance(value, Enum):
        return inner(type(value), value.name, value.value)
    if isinstance(value, _NAMED):
        name = getattr(value, "__qualname__", value.__name__)
        return name, inner(getattr(value, "__self__", None))
    if inspect.isclass(value):
        name = f"{value.__module__}.{value.__qualname__}"
        is_library = value.__module__ in sys.builtin_module_names
        is_in_file = module_with_file(value.__module__) and not is_made_in_function(value)
        if is_library or is_in_file:
            return name
        members = {key: one for key, one in vars(value).items() if key not in _NO_DEFINITION}
        return inner(value.__bases__, members)
    if inspect.isfunction(value):
        code: object = _code_bytes(value.__code__)
        if module_with_file(home := value.__globals__.get("__name__")):
            code = f"{home}.{value.__code__.co_qualname}"
        contents = [_content(cell) for cell in value.__closure__ or ()]
        wrapped = getattr(value, "__wrapped__", None)
        return code, inner(value.__defaults__, value.__kwdefaults__, contents, wrapped)
    if inspect.ismethod(value):
        owner = value.__self__ if inspect.isclass(value.__self__) else type(value.__self__)
        return inner(value.__func__, owner)
    data = _data_definition(value, inner)
    if data is not None:
        return data
    # Wrappers that are no functions: properties, static, cached and partial methods.
    kept = getattr(value, "__dict__", {})
    wrapped = [kept.get(name) for name in ("__wrapped__", "func", "args", "keywords")]
    wrapped += [value.fget, value.fset] if isinstance(value, property) else []
    wrapped += [value.__func__] if isinstance(value, staticmethod | classmethod) else []
    return inner(type(value), *wrapped)


_NAMED = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
    types.WrapperDescriptorType, types.MethodWrapperType, ModuleType, np.ufunc,
)  # fmt: skip
"""Types of modules and of compiled functions, which have a name and no code."""

_NO_DEFINITION = ("__doc__", "__firstlineno__", "__static_attributes__")
"""Attributes of a class that may differ while it does the same."""

_PLAIN = (
    types.NoneType, str, bytes, bytearray, int, float, complex, range, np.generic, np.dtype,
    date, time, timedelta, Decimal, Fraction,
)  # fmt: skip
"""Types of values that their `repr` tells apart."""

_PLAIN_OF_TORCH = tuple(
    f"<class 'torch.{name}'>" for name in ("dtype", "device", "layout", "memory_format")
)
"""The same of PyTorch, which this module does not import."""


def _data_definition(value: Any, inner: Callable[..., list[object]]) -> object | None:
    """Return the definition of a plain value, container, array or tensor; None for other values."""
    if isinstance(value, _PLAIN) or repr(type(value)) in _PLAIN_OF_TORCH:
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, slice):
        return "slice", inner(value.start, value.stop, value.step)
    if isinstance(value, re.Pattern):
        return inner(value.pattern, value.flags)
    if isinstance(value, tuple):  # It indexes an array otherwise than a list does.
        return tuple(inner(*value))
    if isinstance(value, list | deque):
        return inner(*value)
    if isinstance(value, set | frozenset):
        # The order of a set differs from process to process.
        return sorted(map(repr, inner(*value)))
    if isinstance(value, Mapping):
        return sorted(repr(inner(*item)) for item in value.items())
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:  # Its bytes are addresses.
            return repr(value.dtype), value.shape, inner(value.tolist())
        return repr(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dense = value.detach().cpu().to_dense().resolve_conj().resolve_neg()
        # NumPy has no bfloat16, and float64 has neither imaginary parts nor all integers.
        array = (dense.double() if dense.is_floating_point() else dense).numpy()
        return repr(value.dtype), inner(array)
    return None


def _content(cell: CellType) -> Any:
    """Return the value of a variable that a function has from the one around it, or None."""
    try:
        return cell.cell_contents
    except ValueError:  # The variable has no value yet.
        return None


def _code_bytes(code: CodeType) -> bytes:
    """Return the bytes of a code object with its parameters' names, and of functions inside it."""
    constants = []
    for value in code.co_consts:
        if isinstance(value, CodeType):
            constants.append(_code_bytes(value).hex())
        else:
            # The order of a set differs from process to process.
            constants.append(
                repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
            )
    # Instructions have parameters by number, which keywords and keyword-only defaults name.
    counts = code.co_argcount, code.co_kwonlyargcount
    stars = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    parameters = counts, stars, code.co_varnames[: sum(counts)]
    return code.co_code + repr((constants, code.co_names, parameters)).encode()
