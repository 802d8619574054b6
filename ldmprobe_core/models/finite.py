"""Refusal of values that are not finite, before they become pictures, labels or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.errors import RunError


class NonFiniteError(RunError):
    """A network gave NaN or infinite values; the unit of work fails and nothing is recorded.

    Attributes:
        network: that gave them, such as ``unet``.
        samples: positions in the batch of the samples concerned.
        step: sampler step (from 1); None outside the sampler's loop.
    """

    def __init__(self, network: str, samples: Sequence[int], step: int | None) -> None:
        super().__init__(network, tuple(samples), step)  # all of them: errors are pickled
        self.network, self.samples, self.step = network, tuple(samples), step

    def __str__(self) -> str:
        which = ", ".join(map(str, self.samples[:5])) + (", ..." if len(self.samples) > 5 else "")
        step = f" at step {self.step}" if self.step is not None else ""
        return (
            f"{self.network}: values are not finite{step} (samples {which} of the batch). Fix: "
            "check its weights for NaN; with model.dtype float16 try float32 or bfloat16"
        )


def require_finite(
    values: Any, network: str, step: int | None = None, batch: int | None = None
) -> None:
    """Check tensors, and dicts or sequences of them.

    Args:
        values: the first dimension of each tensor counts samples, or copies of the batch.
        network: that gave them.
        step: sampler step, from 1.
        batch: samples in a batch, if `values` hold several copies of it.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    if isinstance(values, Tensor):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            rows = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else None
            bad = [] if rows is None else (~rows).nonzero().flatten().tolist()
            raise NonFiniteError(network, sorted({i % (batch or len(values)) for i in bad}), step)
    elif isinstance(values, dict):
        for value in values.values():
            require_finite(value, network, step, batch)
    elif isinstance(values, (list, tuple)):
        for value in values:
            require_finite(value, network, step, batch)


def require_varied(images: np.ndarray, samples: Sequence[int]) -> None:
    """Refuse images of a single colour: a labeler would find anything in them.

    Args:
        images: (sample, y, x, rgb) uint8.
        samples: index of each in the run.

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
        name: of the property, for messages.
        values: (image, ...), the images of a sample one after another.
        samples: index of each sample in the run.

    Raises:
        RunError: a value is NaN or infinite; property and sample are named.
    """
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        sample = samples[int(bad[0]) * len(samples) // len(values)]
        raise RunError(
            f"labels.{name}: the labeler gives values that are not finite for sample {sample}. "
            "Fix: check its weights"
        )
