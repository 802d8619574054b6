"""Calls of labelers: checks of what they return, and errors that name the property."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import NEW_RUN, LdmprobeError, RunError, UserError
from ldmprobe_core.labelers.base import Labeler, LabelerEntry
from ldmprobe_core.labelers.checks.global_settings import restored_settings
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.properties import CLASS, SHARE_TOLERANCE, Property

_LONGEST_CAUSE = 300
"""Number of characters of another exception's message that a message quotes."""

_CORRECTED = (
    f"correct the labeler and {NEW_RUN}, or "
    "run the study again if the cause is outside its code, such as a network"
)
_OTHER = "correct the labeler or its settings, or name another one"
_AGAIN = "run the study again; if it fails again, choose another labeler"
_LESS_MEMORY = "lower sampling.batch or execution.workers, and run the study again"
_ANY_IMAGE = "let it return labels for any image, such as 0 where it finds nothing"


class LabelerError(RunError):
    """Error for an exception of a labeler's code, which is the cause of this error."""


class LabelerFilesError(UserError):
    """Error for an exception while a labeler's files are located, which is this error's cause."""


class CheckedLabeler:
    """Labeler whose results are converted to float32 and checked for type and shape.

    Attributes other than those below are those of the labeler that it calls.

    Args:
        key: property of the labels, or the vector or class map, as ``labels`` of a study names it.
        name: name of the labeler in the study.
        labeler: function of images; ``units`` and ``classes`` may be missing.
        record: the property, or a component of the vector or class map; None for classes.
        is_own: whether the labeler is not part of this package.

    Attributes:
        classes: names of the classes, empty without classes.  Repeated names are numbered, since
            ImageNet has ``crane`` and ``maillot`` twice.
    """

    def __init__(
        self, key: str, name: str, labeler: Any, record: Property | None, is_own: bool
    ) -> None:
        self.key, self.name, self.labeler = key, name, labeler
        self.record, self.is_own = record, is_own
        unnamed = f"as {getattr(labeler, '__name__', type(labeler).__name__)} returns"
        self.units = str(getattr(labeler, "units", unnamed))
        classes = getattr(labeler, "classes", None)
        self.classes = () if classes is None else _unique(map(str, classes))

    def __getattr__(self, name: str) -> Any:
        # Python asks a copy for special methods before it has its attributes.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.labeler, name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute float32 labels of images: (n, y, x), (n, y, x, component), (n,) or (n, class).

        Args:
            images: (n, y, x, rgb) uint8.

        Raises:
            LabelerError: the labeler raised an exception.
            UserError: the labeler's result is not numeric, or has another shape.
        """
        remedy = _CORRECTED if self.is_own else _AGAIN
        with named_errors(self.key, self.name, LabelerError, remedy), restored_settings():
            result = self.labeler(images)
        return self._labels(result, images)

    def require_classes(self) -> None:
        """Check that a labeler of classes tells at least two apart.

        Raises:
            UserError: it has fewer, so that it would recognise one class in every image.
        """
        if self.key == CLASS and len(self.classes) < 2:
            raise UserError(
                f"labels.{CLASS}: the labeler {self.name!r} tells {len(self.classes)} classes "
                "apart. Fix: list at least two names in its attribute `classes`, one for each "
                "probability that it returns"
            )

    def try_on(self, images: np.ndarray) -> None:
        """Call the labeler on an image that belongs to no run, and check what it returns.

        Undefined labels (NaN) are accepted, as it may find nothing in this image.

        Raises:
            UserError: the labeler raised an exception, its result is not numeric, or it has another
                shape, or values outside 0..1 for a mask or class probabilities.
        """
        height, width = images.shape[1:3]
        failure = f"failed on an image of noise, {height} x {width} pixels"
        remedy = f"{_OTHER}, or {_ANY_IMAGE}"
        with named_errors(self.key, self.name, UserError, remedy, failure), restored_settings():
            result = self.labeler(images)
        labels = self._labels(result, images)
        lowest, highest = np.fmin.reduce(labels, None), np.fmax.reduce(labels, None)
        if self._is_share and (lowest < -SHARE_TOLERANCE or highest > 1 + SHARE_TOLERANCE):
            raise UserError(
                f"labels.{self.key}: the labeler {self.name!r} returned values from {lowest:g} to "
                f"{highest:g} for an image of noise, {height} x {width} pixels. Fix: let it return "
                "values from 0 to 1"
            )

    @property
    def _is_share(self) -> bool:
        """Flag that is True if labels are a mask or probabilities, from 0 to 1."""
        if self.record is None or self.record.component is not None:
            return self.key == CLASS
        return self.record.is_mask

    def _labels(self, result: Any, images: np.ndarray) -> np.ndarray:
        """Convert the labeler's result for images to float32 labels.

        Raises:
            UserError: the result is not numeric, or has another shape.
        """
        expected = self._label_shape(images)
        try:
            # A labeler of the user may return an array that its next call fills again.
            labels = _real_numbers(result, copy=self.is_own)
        # An object of the user may raise any exception when it is read as an array.
        except Exception as error:
            raise UserError(
                f"labels.{self.key}: the labeler {self.name!r} returned {type(result).__name__}, "
                f"not an array of numbers ({_cause(error)}). Fix: return a NumPy array of shape "
                f"{expected}"
            ) from error
        if labels.shape != expected:
            raise UserError(
                f"labels.{self.key}: the labeler {self.name!r} returned shape {labels.shape} for "
                f"images of shape {images.shape}. Fix: return shape {expected}: per image a map "
                "(y, x), a vector map (y, x, component), one number, or a probability of each "
                "class in the attribute `classes`"
            )
        return labels

    def _label_shape(self, images: np.ndarray) -> tuple[int, ...]:
        """Return the shape that the labels of images (n, y, x, rgb) must have."""
        if self.key == CLASS:
            return len(images), len(self.classes)
        if self.record is not None and self.record.kind == "number":
            return (len(images),)
        component = None if self.record is None else self.record.component
        is_vector = component is not None and component.joint == "vector"
        return (*images.shape[:3], component.size) if component and is_vector else images.shape[:3]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """Append numbers to repeated names, as in ``crane`` and ``crane (2)``."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(unique)


def _real_numbers(result: Any, copy: bool) -> np.ndarray:
    """Convert a labeler's result to float32.

    Masked values become NaN, which is refused where labels are written.

    Args:
        result: what the labeler returned.
        copy: whether to copy an array that is float32 already.

    Raises:
        TypeError: the result is not an array of real numbers, such as one of complex numbers or
            dates, of which NumPy would keep a part.
        Exception: any other one, which an object may raise when it is read as an array.
    """
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu().to_dense()
        # NumPy has no bfloat16.
        result = result.float() if result.dtype == torch.bfloat16 else result
    values = np.ma.asanyarray(result)
    if values.dtype.kind == "O":
        values = values.astype(np.float32)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"values of type {values.dtype} are not real numbers")
    return np.ma.filled(values.astype(np.float32, copy=copy), np.nan)


@contextmanager
def named_errors(
    key: str, name: str, kind: type[LdmprobeError], remedy: str, failure: str = "failed"
) -> Iterator[None]:
    """Context manager that turns exceptions of a labeler's code into errors of one line.

    A labeler may be code of the user, which may raise any exception.  `SystemExit` is one of them:
    it would end the command with the exit code of success.

    Args:
        key: property of the labels, or the vector or class map, as ``labels`` of a study names it.
        name: name of the labeler in the study.
        kind: class of the error that is raised.
        remedy: what to do, for the message; unless the exception's own message has a remedy.
        failure: what the labeler did, for the message.
    """
    try:
        yield
    except LdmprobeError as error:
        if str(error).startswith("labels."):
            raise
        named = UserError if isinstance(error, UserError) else RunError
        raise named(f"labels.{key} is {name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            remedy = _LESS_MEMORY
        raise kind(
            f"labels.{key}: the labeler {name!r} {failure} ({_cause(error)}). Fix: {remedy}"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the type and message of an exception in one line, as the command line prints it."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message:.{_LONGEST_CAUSE}}".rstrip(": ")


def load_checked(
    entry: LabelerEntry, key: str, spec: LabelerSpec, device: torch.device, record: Property | None
) -> Labeler:
    """Load a labeler, wrapped so that the labels it returns are checked.

    Args:
        entry: registry entry of the labeler.
        key, record: see `CheckedLabeler`.
        spec: settings of the labeler.
        device: device to load it onto.

    Raises:
        UserError: its package or weights are missing.
        LabelerError: its code raised an exception.
    """
    failure = "cannot be loaded"
    with named_errors(key, spec.name, LabelerError, _OTHER, failure), restored_settings():
        labeler = entry.load(spec, device)
    return CheckedLabeler(key, spec.name, labeler, record, entry.is_own)
