"""Protocol of labelers, and entry that registers how to load a labeler and find its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import PublishedSource
from ldmprobe_core.study.readers.image_folder import file_digest

if TYPE_CHECKING:
    import torch


class Labeler(Protocol):
    """Function that computes the labels of one property, such as depth, from images.

    Attributes:
        units: units of the labels, in words, such as ``metre``.
        classes: names of the classes, in the order of their probabilities; empty for labelers that
            give maps.
    """

    units: str
    classes: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute the labels of images.

        The label of an image must depend on this image alone, so that it is the same in a batch of
        any size.

        Args:
            images: (n, y, x, rgb) uint8.

        Returns:
            float32 maps (n, y, x) or class probabilities (n, class).  In maps, larger depth means
            farther, foreground is a probability in 0..1, and shading is at least 0.
        """
        ...


def nothing_published(spec: LabelerSpec) -> list[PublishedSource]:
    """Return no files to fetch, for a labeler whose weights are local or part of a package."""
    return []


def no_weights(spec: LabelerSpec) -> list[Path]:
    """Return no weight files, for a labeler that has none."""
    return []


class CallMemory(NamedTuple):
    """Memory of the intermediate values in one call of a labeler's network.

    Both sizes are bytes for one image of a call with as many images as it takes.  The peak grows in
    proportion to the images.  So does the small part, roughly, up to images so large that a call's
    tensors exceed 32 MiB; beyond that, this is more than the call needs.

    Attributes:
        at_once: largest number of images in a call.
        peak: bytes of the float32 tensors that exist together.
        small: the part of these in tensors of at most 32 MiB.
    """

    at_once: int = 1
    peak: int = 0
    small: int = 0


def unknown_memory(size: tuple[int, int]) -> CallMemory:
    """Return no bytes, for a labeler whose intermediate values are not known before it runs."""
    return CallMemory()


@dataclass(frozen=True)
class SourceFile:
    """Python file that defines labelers, and its SHA-256 when the first of them became known."""

    path: Path
    digest: bytes

    @classmethod
    def of(cls, module: ModuleType) -> SourceFile:
        """Return the file of an imported module, with the digest that it had at the first call.

        A module that is imported again, or reloaded, has the code that its file holds now.
        """
        path = Path(str(module.__file__))
        known_module, known_spec, file = _source_files.get(path, (None, None, None))
        if file is None or known_module is not module or known_spec is not module.__spec__:
            file = cls(path, file_digest(path))
            _source_files[path] = module, module.__spec__, file
        return file

    def require_unchanged(self) -> Path:
        """Return the file's path; raise `UserError` if the file holds other code by now.

        A process keeps the code that it imported first, so other code would label than the file
        shows, whose hash the run records.
        """
        if not self.path.is_file() or file_digest(self.path) != self.digest:
            raise UserError(
                f"its file {self.path} was changed after this process imported it. Fix: start a "
                "new process, such as the notebook's kernel, and restart the workers"
            )
        return self.path


_source_files: dict[Path, tuple[ModuleType, ModuleSpec | None, SourceFile]] = {}
"""Files of this process's labelers, with the module and, since a reload changes it, its spec."""


@dataclass(frozen=True)
class LabelerEntry:
    """Registry entry of a labeler: a function that loads it, and one that finds its weight files.

    Attributes:
        load: function that loads the labeler onto a device.
        locate_weights: function that returns the labeler's weight files without loading them; it
            raises `UserError` if a file or package is missing.  A hash of the files is recorded in
            each run.
        published: function that lists the published files that the labeler needs and this machine
            may lack; None if the labeler's own package fetches its weights when it is loaded.
        call_memory: function from the height and width of images in pixels to the memory of a call.
        code: bytes that change with the labeler's code, if no file holds it; they are part of the
            fingerprint, so that a run is not resumed with another function of the same name.
        file: file that defines the labeler, which is part of the fingerprint too; None if there is
            none, and for most labelers of this package.
        is_function: whether the labeler is a function of images, without weights to load.
    """

    load: Callable[[LabelerSpec, torch.device], Labeler]
    locate_weights: Callable[[LabelerSpec], list[Path]] = no_weights
    published: Callable[[LabelerSpec], list[PublishedSource]] | None = nothing_published
    call_memory: Callable[[tuple[int, int]], CallMemory] = unknown_memory
    code: bytes = b""
    file: SourceFile | None = None
    is_function: bool = False

    @property
    def is_own(self) -> bool:
        """Return whether the labeler is not part of this package."""
        if self.file is not None:
            return not self.file.path.is_relative_to(Path(__file__).parent)
        return bool(self.code)
