"""Checks for values that are not finite, before they become images, labels or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.errors import RunError


class NonFiniteError(RunError):
    """NaN or infinite values in a network's output; the unit of work fails unrecorded.

    Attributes:
        network: name of the network, such as ``unet``.
        samples: positions in the batch of the affected samples.
        step: sampler step (from 1); None outside the sampler's loop.
    """

    def __init__(self, network: str, samples: Sequence[int], step: int | None) -> None:
        super().__init__(network, tuple(samples), step)  # pickling calls with these arguments
        self.network, self.samples, self.step = network, tuple(samples), step

    def __str__(self) -> str:
        named = ", ".join(map(str, self.samples[:5])) + (", ..." if len(self.samples) > 5 else "")
        step = f" at step {self.step}" if self.step is not None else ""
        return (
            f"{self.network}: values are not finite{step} (samples {named} of the batch). Fix: "
            "check its weights for NaN; with model.dtype float16 try float32 or bfloat16"
        )


def require_finite(
    values: Any, network: str, step: int | None = None, batch: int | None = None
) -> None:
    """Check tensors, and dicts or sequences of them.

    Args:
        values: tensors whose first dimension is the samples, or several copies of the batch.
        network: name of the network that computed them.
        step: sampler step, from 1.
        batch: number of samples in the batch, if `values` hold several copies of it.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    if isinstance(values, Tensor):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            rows = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else None
            affected = [] if rows is None else (~rows).nonzero().flatten().tolist()
            samples = sorted({i % (batch or len(values)) for i in affected})
            raise NonFiniteError(network, samples, step)
    elif isinstance(values, dict):
        for value in values.values():
            require_finite(value, network, step, batch)
    elif isinstance(values, (list, tuple)):
        for value in values:
            require_finite(value, network, step, batch)


def require_varied(images: np.ndarray, samples: Sequence[int]) -> None:
    """Refuse images of a single colour, whose labels would be arbitrary.

    Args:
        images: (sample, y, x, rgb) uint8.
        samples: index of each image's sample in the run.

    Raises:
        RunError: an image does not vary; the sample is named.
    """
    flat = images.reshape(len(images), -1, images.shape[-1])
    constant = np.flatnonzero((flat == flat[:, :1]).all((1, 2)))
    if len(constant):
        i = int(constant[0])
        color = ", ".join(str(int(v)) for v in flat[i, 0])
        raise RunError(
            f"images: sample {samples[i]} is one colour throughout (rgb {color}), so there is "
            "nothing to label. Fix: check the model's weights, model.dtype and sampling"
        )


def require_finite_labels(name: str, values: np.ndarray, samples: Sequence[int]) -> None:
    """Refuse a labeler's output that is not finite.

    Args:
        name: name of the property, for messages.
        values: float (image, ...), with the images of a sample next to each other.
        samples: index of each sample in the run.

    Raises:
        RunError: a value is NaN or infinite; property and sample are named.
    """
    affected = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(affected):
        sample = samples[int(affected[0]) * len(samples) // len(values)]
        raise RunError(
            f"labels.{name}: the labeler gives values that are not finite for sample {sample}. "
            "Fix: check its weights"
        )
