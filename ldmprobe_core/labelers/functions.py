"""Labelers that are Python functions of images, and labelers named as ``module:function``."""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe_core.errors import NEW_RUN, UserError
from ldmprobe_core.labelers.base import LabelerEntry, SourceFile, no_weights
from ldmprobe_core.labelers.checks.global_settings import restored_settings
from ldmprobe_core.study.extensions.components import Component
from ldmprobe_core.study.extensions.definitions import (
    function_definition,
    is_made_in_function,
    module_with_file,
)
from ldmprobe_core.study.probe_sections import LabelerSpec


class FunctionLabeler:
    """Labeler that calls a function of images (n, y, x, rgb) uint8, which returns labels.

    Args:
        function: function that returns maps (n, y, x), or vector maps, numbers or class
            probabilities.  Its attributes ``units`` and ``classes``, if any, are the labeler's.
    """

    def __init__(self, function: Callable[[np.ndarray], Any]) -> None:
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        self.units = str(getattr(function, "units", f"as {name} returns"))
        self.classes = tuple(getattr(function, "classes", ()))

    def __call__(self, images: np.ndarray) -> Any:
        """Return what the function returns for images (n, y, x, rgb) uint8."""
        # The same images go to other labelers, so a function that writes into them gets a copy.
        return self.function(images.copy())


class JointLabeler:
    """Wrapper that caches, per thread, the last result of a labeler of a vector or class map.

    A study calls the labelers of all components one after another with the same array of images,
    and they share one call of this labeler.

    Args:
        labeler: function from images (n, y, x, rgb) uint8, with an attribute ``units``, to maps
            float32: (n, y, x, component) of a vector, or (n, y, x) of a class map, whose values are
            the indices of classes.
    """

    def __init__(self, labeler: Any) -> None:
        self.labeler = labeler
        self.last = threading.local()

    def component(self, images: np.ndarray, component: Component) -> np.ndarray:
        """Compute one component (n, y, x) float32: a vector's values, or the 0/1 mask of a class.

        Raises:
            UserError: a value of a class map is no index of a class.
        """
        if getattr(self.last, "images", None) is not images:
            self.last.maps = self.labeler(images)
            self.last.images = images
        maps = self.last.maps
        if component.joint == "vector":
            return np.ascontiguousarray(maps[..., component.index])
        outside = ~np.isin(maps, np.arange(component.size))
        if outside.any():
            raise UserError(
                f"labels.{component.vector}: the labeler returned {maps[outside][0]:g}, which is "
                f"no class index. Fix: return whole numbers from 0 to {component.size - 1}, in the "
                f"order of the classes in the property's declaration, and {NEW_RUN}"
            )
        return np.equal(maps, component.index).astype(np.float32)


class ComponentLabeler:
    """Labeler of one component of a vector or a class map."""

    classes: tuple[str, ...] = ()

    def __init__(self, joint: JointLabeler, component: Component) -> None:
        self.joint, self.place = joint, component
        is_vector = component.joint == "vector"
        self.units: str = joint.labeler.units if is_vector else "1 in the class, 0 elsewhere"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute maps (n, y, x) float32 of images (n, y, x, rgb) uint8."""
        return self.joint.component(images, self.place)


def takes_images(labeler: Any) -> bool:
    """Return whether a callable takes images as its only argument, not settings and a device."""
    if isinstance(labeler, functools.partial):
        inner = _own_signature(labeler.func)
        labeler = functools.partial(inner, *labeler.args, **labeler.keywords)
    labeler = _own_signature(labeler)
    try:
        parameters = inspect.signature(labeler).parameters.values()
    except (TypeError, ValueError):  # Some C functions have no signature.
        return False
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(positional) == 1 and not inspect.isclass(labeler)


def _own_signature(labeler: Any) -> Any:
    """Return a callable whose signature has the arguments that a labeler takes.

    A network of PyTorch takes any arguments, by its signature, and hands them to `forward`.
    """
    is_network = not inspect.isclass(labeler) and hasattr(labeler, "register_forward_hook")
    return labeler.forward if is_network else labeler


def function_entry(function: Callable[[np.ndarray], Any]) -> LabelerEntry:
    """Build the registry entry of a function of images.

    The hash that each run records is that of the file in which the function is defined, or of its
    code if there is no file, as in a notebook.
    """
    entry = LabelerEntry(
        lambda spec, device: FunctionLabeler(function), _refuse_weights, is_function=True
    )
    return with_definition(entry, function)


def with_definition(entry: LabelerEntry, labeler: Any) -> LabelerEntry:
    """Add to a labeler's entry the file that defines it, and what of it no file holds.

    Args:
        entry: entry of a labeler that is not part of this package.
        labeler: function or class that the entry stands for.
    """
    function = labeler
    while isinstance(function, functools.partial):
        function = function.func
    module = module_with_file(getattr(function, "__module__", None))
    # The arguments of a partial, and the values that a function or class has from the function
    # around it, may stand elsewhere than in the file.
    is_in_file = function is labeler and not is_made_in_function(function)
    meaning = getattr(labeler, "units", None), getattr(labeler, "classes", None)
    code = b"" if module and is_in_file else repr(function_definition((labeler, meaning))).encode()
    file = None if module is None else SourceFile.of(module)
    return replace(entry, code=entry.code + code, file=file)


def import_labeler(prop: str, name: str) -> Any:
    """Import the class or function that a study names as ``module:function``.

    Raises:
        UserError: the module cannot be imported, or has no such class or function.
    """
    module_name, _, path = name.partition(":")

    def import_error(problem: str, remedy: str) -> UserError:
        return UserError(f"labels.{prop} is {name!r}: {problem}. Fix: {remedy}")

    if not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise import_error(
            "this is not the name of a function", "write it as package.module:function"
        )
    try:
        with restored_settings():
            found: Any = importlib.import_module(module_name)
    # The import runs code of the module, which may raise any exception.
    except (Exception, SystemExit) as error:
        raise import_error(
            f"its module cannot be imported on this machine ({type(error).__name__}: "
            f"{' '.join(str(error).split())})",
            "install its package here and on all workers, or put its folder into PYTHONPATH",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise import_error(
                f"{module_name} has no {path}",
                f"correct the name; the file is {getattr(found, '__file__', module_name)}"
                if module_name != "__main__"
                else "move the function to a module that this process can import, and name that",
            )
        found = getattr(found, part)
    if not callable(found):
        raise import_error(f"{path} is a {type(found).__name__}", "name a function or a class")
    if not (_accepts(found, 1) or _accepts(found, 2)):
        raise import_error(
            f"{path} cannot be called with images, nor with settings and a device",
            "name a function of images, or a class or function that loads a labeler",
        )
    return found


def _accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Return whether a function can be called with a number of arguments, as far as is known."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # Some C functions have no signature.
        return True
    return True


def _refuse_weights(spec: LabelerSpec) -> list[Path]:
    """Return no weight files; raise `UserError` if the study gives a function weights."""
    for key in ("weights", "revision"):
        if getattr(spec, key) is not None:
            raise UserError(
                f"the labeler is a function of images, which takes no {key} "
                f"({getattr(spec, key)!r:.60}). Fix: leave {key} out, or name a class that takes "
                "the labeler's settings and a device"
            )
    return no_weights(spec)
