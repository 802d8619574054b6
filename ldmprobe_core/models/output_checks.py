"""Checks for unusable outputs of networks: NaN, infinite values, and images of one colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmprobe_core.errors import NEW_RUN, RunError
from ldmprobe_core.study.properties import SHARE_TOLERANCE


class NonFiniteError(RunError):
    """Error for NaN or infinite values in the output of a network or the scheduler.

    Attributes:
        network: name of the network, such as ``unet``, or ``scheduler``.
        samples: positions of the affected samples in their batch, from 0.
        step: sampler step (from 1); None if the values were computed after the last step.
    """

    def __init__(self, network: str, samples: Sequence[int], step: int | None) -> None:
        # Worker processes pickle exceptions, and unpickling calls the class with `self.args`.  The
        # base class sets `self.args` to its own arguments, so it must receive those of this method.
        super().__init__(network, tuple(samples), step)
        self.network, self.samples, self.step = network, tuple(samples), step

    def __str__(self) -> str:
        named = ", ".join(map(str, self.samples[:5])) + (", ..." if len(self.samples) > 5 else "")
        step = f" at step {self.step}" if self.step is not None else ""
        return (
            f"{self.network}: values are not finite{step} (samples {named} of the batch). Fix: "
            "check its weights for NaN; if it computes in float16 (model.dtype, or the pipeline "
            "object's own), try float32 or bfloat16"
        )


def require_finite(
    values: Any, network: str, step: int | None = None, batch: int | None = None
) -> None:
    """Check that tensors hold neither NaN nor infinite values.

    Args:
        values: a tensor, or a dict, list or tuple of tensors, nested to any depth; other values are
            ignored.  The first dimension of each tensor is the sample.
        network: name of the network that computed the values, for the message.
        step: sampler step (from 1), for the message; None if the values are of no step.
        batch: number of samples in the batch; needed only if the tensors hold several copies of
            the batch, as under guidance.

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
    """Check that no image has a single colour, because labels of such an image are meaningless.

    Args:
        images: (sample, y, x, rgb) uint8.
        samples: index in the run of each image's sample, for the message.

    Raises:
        RunError: all pixels of an image are equal.
    """
    flat = images.reshape(len(images), -1, images.shape[-1])
    constant = np.flatnonzero((flat == flat[:, :1]).all((1, 2)))
    if len(constant):
        i = int(constant[0])
        color = ", ".join(str(int(v)) for v in flat[i, 0])
        raise RunError(
            f"images: all pixels of sample {samples[i]} have one colour (rgb {color}), so there is "
            "nothing to label. Fix: check the model's weights, model.dtype and sampling"
        )


def require_shares(
    name: str, values: np.ndarray, samples: Sequence[int], noun: str = "mask values"
) -> None:
    """Check that a labeler's mask values or class probabilities are in 0..1.

    A mask is read by comparing with ``labels.threshold``, a share, and class probabilities are
    compared with 0.9, so that logits or values from 0 to 255 would be read wrongly.

    Args:
        name: name of the labeled property, for the message.
        values: float (image, ...); every sample has the same number of consecutive images.
        samples: index in the run of each sample, for the message.
        noun: what the values are, in plural, for the message.

    Raises:
        RunError: a value is below 0 or above 1.
    """
    flat = values.reshape(len(values), -1)
    outside = (flat < -SHARE_TOLERANCE) | (flat > 1 + SHARE_TOLERANCE)
    affected = np.flatnonzero(outside.any(1))
    if len(affected):
        sample = samples[int(affected[0]) * len(samples) // len(values)]
        raise RunError(
            f"labels.{name}: the labeler's {noun} range from {flat.min():g} to "
            f"{flat.max():g}, not from 0 to 1 (first in sample {sample}). Fix: let it return "
            f"values from 0 to 1, or choose another labeler, and {NEW_RUN}"
        )


def require_finite_labels(name: str, values: np.ndarray, samples: Sequence[int]) -> None:
    """Check that a labeler's output holds neither NaN nor infinite values.

    Args:
        name: name of the labeled property, for the message.
        values: float (image, ...); every sample has the same number of consecutive images.
        samples: index in the run of each sample, for the message.

    Raises:
        RunError: a value is NaN or infinite.
    """
    affected = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(affected):
        sample = samples[int(affected[0]) * len(samples) // len(values)]
        raise RunError(
            f"labels.{name}: the labeler computed NaN or infinite values for sample {sample}. "
            "Fix: if the labeler is a function of yours, let it return finite values; else check "
            f"its weights, or choose another labeler, and {NEW_RUN}"
        )


_REPEATABLE = 0.01
"""Mean difference of two labels of one image that is allowed, as a share of all labels' range."""

_ROUNDED = 1e-4
"""Mean difference that is allowed as a share of the largest label, where labels hardly vary."""

_NOTHING = 1e-6
"""Mean difference that is allowed of any labels, such as those of masks of nothing."""


def require_repeatable(name: str, labels: np.ndarray, alone: np.ndarray, sample: int) -> None:
    """Check that an image's label is the same if the image is labeled without others.

    A labeler that scales its maps by the largest value of a batch, or that draws random numbers,
    would give labels that depend on ``sampling.batch``, and others each time.

    Args:
        name: name of the labeled property, for the message.
        labels: labels of a batch, (image, ...).
        alone: label of its first image, labeled again without the others, (1, ...).
        sample: index in the run of this image's sample, for the message.

    Raises:
        RunError: the labels differ by more than rounding.
    """
    spread = float(labels.max() - labels.min())
    difference = float(np.abs(labels[:1].astype(np.float64) - alone).mean())
    # A network's results are rounded in another way if it gets one image instead of several.
    if difference > max(_REPEATABLE * spread, _ROUNDED * float(np.abs(labels).max()), _NOTHING):
        raise RunError(
            f"labels.{name}: the labeler gives the image of sample {sample} another label when it "
            f"labels this image alone (by {difference:.3g} on average, of a range of {spread:.3g} "
            "in its batch). Fix: let the label of an image depend on this image alone, and give "
            f"the same label each time, and {NEW_RUN}"
        )
