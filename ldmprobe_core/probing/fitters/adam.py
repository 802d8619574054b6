"""Linear probes fitted by Adam on full-size maps, as in Chen, Viégas & Wattenberg (2023)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.measured import measured

ADAM_EPOCHS = 30
"""Number of passes over the training samples, of probes fitted by Adam."""

ADAM_BATCH = 4
"""Number of samples in an update, of probes fitted by Adam."""

_IGNORED = -100
"""Class index of pixels that were not measured; PyTorch's cross-entropy ignores this class."""


def fit_adam(
    activations: np.ndarray,
    target: np.ndarray,
    mask: bool,
    seed: int = 0,
    epochs: int = ADAM_EPOCHS,
    batch: int = ADAM_BATCH,
    learning_rate: float = 1e-3,
) -> LinearProbe:
    """Fit a linear probe by Adam to full-size label maps, as Chen et al. (2023) do.

    The loss compares labels with predictions after nearest-neighbour upsampling.  For a mask,
    the probe gives two logits without bias, and the loss is cross-entropy.  For other maps, it
    gives one value, and the loss is Huber's with delta 1.  Both follow section 3 of the paper and
    its published code.

    Args:
        activations: (n, y, x, channel).
        mask: whether the label is a mask.
        seed: seed of the initialisation and of the order of samples.
        batch: number of samples in a gradient step.
        target: labels (n, Y, X) at the image's size; bool for a mask, else values; floats with NaN
            at pixels that were not measured, which do not count in the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(activations.astype(np.float32)).permute(0, 3, 1, 2)
    known = measured(target)
    if known is not None and mask:
        target = np.where(known, np.nan_to_num(target), _IGNORED)
    y = torch.from_numpy(target.astype(np.int64 if mask else np.float32))
    channels = x.shape[1]
    # Draw from the default distribution of torch.nn.Linear, but with a seeded generator, so that
    # repeated fits give the same probe.
    bound = channels**-0.5
    outputs = 2 if mask else 1
    weight = torch.empty(outputs, channels).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    parameters = [weight.requires_grad_()] + ([] if mask else [bias.requires_grad_()])
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            output = torch.einsum("ncyx,kc->nkyx", x[index], weight)
            if not mask:
                output = output + bias[:, None, None]
            output = F.interpolate(output, size=tuple(y.shape[1:]), mode="nearest")
            if mask:
                loss = F.cross_entropy(output, y[index], ignore_index=_IGNORED)
            elif known is None:
                loss = F.huber_loss(output[:, 0], y[index], delta=1.0)
            else:
                pixels = ~y[index].isnan()
                loss = F.huber_loss(output[:, 0][pixels], y[index][pixels], delta=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fitted = weight.detach().double().numpy()
    if mask:
        return LinearProbe(fitted[1] - fitted[0], 0.0, float("nan"))
    return LinearProbe(fitted[0], float(bias.detach()), float("nan"))
