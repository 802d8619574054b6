"""Labelers that are Python functions of images, and labelers named as ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.base import LabelerEntry, no_weights
from ldmprobe_core.study.probe_sections import LabelerSpec


class FunctionLabeler:
    """Labeler that calls a function from images (n, y, x, rgb) uint8 to labels.

    Args:
        function: function that returns maps (n, y, x), or class probabilities (n, class) if it has
            an attribute ``classes``.  Its attribute ``units``, if any, is stored with the labels.
        components: number of components of a vector, in which case the maps are
            (n, y, x, component); 0 for maps of one number a pixel.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], components: int = 0) -> None:
        self.function, self.components = function, (components,) if components else ()
        self.name = getattr(function, "__name__", type(function).__name__)
        self.units = str(getattr(function, "units", f"as {self.name} returns"))
        self.classes = tuple(getattr(function, "classes", ()))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute labels (n, y, x), (n, y, x, component) or (n, class) float32 of images.

        Args:
            images: (n, y, x, rgb) uint8.

        Raises:
            UserError: the function's result is not numeric, or has another shape.
        """
        result = self.function(images)
        expected = (len(images), len(self.classes)) if self.classes else images.shape[:3]
        expected += self.components
        try:
            labels = _real_numbers(result)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the labeler {self.name!r} returned {type(result).__name__}, which is no array of "
                f"numbers. Fix: return an array of shape {expected}"
            ) from error
        if labels.shape != expected:
            raise UserError(
                f"the labeler {self.name!r} returned shape {labels.shape} for images of shape "
                f"{images.shape}. Fix: return shape {expected}, which is a map of each image's "
                "height and width (and component of a vector), or a probability of each name in "
                "its attribute classes"
            )
        return labels


def _real_numbers(result: Any) -> np.ndarray:
    """Convert a labeler's result to float32.

    Masked values become NaN, which is refused where labels are written.

    Raises:
        TypeError, ValueError: the result is not an array of real numbers, such as one of complex
            numbers or dates, of which NumPy would keep a part.
    """
    detach = getattr(result, "detach", None)
    values = np.ma.asanyarray(result if detach is None else detach().cpu())
    if values.dtype.kind == "O":
        values = values.astype(np.float32)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"values of type {values.dtype} are not real numbers")
    return np.ma.filled(values.astype(np.float32), np.nan)


class VectorLabeler:
    """Labeler of vectors that keeps its last result, separately for each thread.

    A study calls the labelers of a vector's components one after another with the same array of
    images, and they share one call of this labeler.

    Args:
        labeler: function from images (n, y, x, rgb) uint8 to maps (n, y, x, component) float32,
            with an attribute ``units``.
    """

    def __init__(self, labeler: Any) -> None:
        self.labeler = labeler
        self.last = threading.local()

    def component(self, images: np.ndarray, index: int) -> np.ndarray:
        """Compute maps (n, y, x) float32 of one component."""
        if getattr(self.last, "images", None) is not images:
            self.last.maps = self.labeler(images)
            self.last.images = images
        return np.ascontiguousarray(self.last.maps[..., index])


class ComponentLabeler:
    """Labeler of one component of a vector property."""

    classes: tuple[str, ...] = ()

    def __init__(self, vectors: VectorLabeler, index: int) -> None:
        self.vectors, self.index = vectors, index
        self.units: str = vectors.labeler.units

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute maps (n, y, x) float32 of images (n, y, x, rgb) uint8."""
        return self.vectors.component(images, self.index)


def takes_images(labeler: Any) -> bool:
    """Return whether a callable takes one argument, the images, instead of settings and device."""
    try:
        parameters = inspect.signature(labeler).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(positional) == 1 and not inspect.isclass(labeler)


def function_entry(function: Callable[[np.ndarray], Any], components: int = 0) -> LabelerEntry:
    """Build the registry entry of a function of images.

    Args:
        function: see `FunctionLabeler`.
        components: number of components of the vector that it labels; 0 if it labels no vector.

    The hash that each run records is that of the file in which the function is defined.
    """
    return LabelerEntry(
        lambda spec, device: FunctionLabeler(function, components), partial(_source_files, function)
    )


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
        found: Any = importlib.import_module(module_name)
    # A module runs any code when it is imported, and may raise anything.
    except Exception as error:
        raise import_error(
            f"its module cannot be imported on this machine ({type(error).__name__}: {error})",
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
    return found


def _source_files(function: Any, spec: LabelerSpec) -> list[Path]:
    """Return the file that defines a function; none if it was defined interactively.

    Raises:
        UserError: the study gives weights, which a function does not take.
    """
    for key in ("weights", "revision"):
        if getattr(spec, key) is not None:
            raise UserError(
                f"the labeler is a function of images, which takes no {key} "
                f"({getattr(spec, key)!r:.60}). Fix: leave {key} out, or name a class that takes "
                "the labeler's settings and a device"
            )
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return [Path(file)] if file and Path(file).is_file() else no_weights(spec)
