"""Functions on a user's own pipeline and arrays: capture activations, label images, fit probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import registry
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.models.architectures.registry import architecture_of
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.logistic import fit_logistic
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import LabelerSpec, Probes


@dataclass(frozen=True)
class Captured(Mapping[str, xr.DataArray]):
    """Result of `capture`: final images, and a mapping from layer names to activations.

    Attributes:
        images: final images, (sample, y, x, rgb) uint8.
        layers: activations by layer name, (sample, step, y, x, channel) float16.  ``step`` counts
            from 1; the coordinate ``timestep`` holds the scheduler's timestep of each step.
    """

    images: np.ndarray
    layers: dict[str, xr.DataArray]

    def __getitem__(self, layer: str) -> xr.DataArray:
        return self.layers[layer]

    def __iter__(self) -> Any:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def capture(
    pipe: Any,
    prompts: Sequence[str],
    layers: str | Sequence[str] = "self-attention",
    steps: int = 15,
    seeds: Sequence[int] | None = None,
    guidance: float = 7.5,
    negative: str | None = None,
) -> Captured:
    """Sample from a loaded diffusers pipeline and record the denoiser's activations.

    The pipeline's own weights, adapters, device and scheduler are used.  With classifier-free
    guidance, the activations of the conditional half are recorded.

    Args:
        pipe: a diffusers pipeline of a registered architecture.
        prompts: one prompt per image; all images form one batch.
        layers: presets (self-attention, cross-attention, resnets, blocks) or globs over the
            denoiser's module names.
        steps: number of sampler steps.
        seeds: seed of each image's generator; None counts from 0.
        guidance: classifier-free guidance scale; 1 is none.
        negative: negative prompt of all images; None for none.

    Raises:
        UserError: the architecture or a layer is unknown, or the number of seeds differs from the
            number of prompts.

    Example::

        captured = lp.capture(pipe, ["a red car on a gray floor"], steps=15, seeds=[0])
        captured["mid_block.attentions.0.transformer_blocks.0.attn1"].sel(step=3)
    """
    image_seeds = list(range(len(prompts)) if seeds is None else seeds)
    if not prompts or len(image_seeds) != len(prompts):
        raise UserError(
            f"seeds: {len(image_seeds)} for {len(prompts)} prompts. Fix: give one for each prompt"
        )
    globs = (layers,) if isinstance(layers, str) else tuple(layers)
    study = _capture_study(prompts, globs, steps, guidance, negative)
    sampler = PipelineSampler(pipe, architecture_of(pipe), study)
    samples = [
        Sample(i, prompt, seed, None, "train")
        for i, (prompt, seed) in enumerate(zip(prompts, image_seeds, strict=True))
    ]
    buffer = ActivationBuffer()
    batch = sampler.sample(samples, buffer, step_images=False)
    activations = buffer.pop()["trained"].values
    return Captured(batch.image, _label_axes(activations, np.asarray(batch.timestep)))


def _label_axes(
    activations: Mapping[str, np.ndarray], timesteps: np.ndarray | Sequence[float]
) -> dict[str, xr.DataArray]:
    """Activations (sample, step, y, x, channel) by layer, with dimensions and coordinates."""
    dims = ("sample", "step", "y", "x", "channel")
    steps = {"step": range(1, len(timesteps) + 1), "timestep": ("step", timesteps)}
    return {
        layer: xr.DataArray(
            values, dims=dims, coords={"sample": range(len(values)), **steps}, name="activation"
        )
        for layer, values in activations.items()
    }


def _capture_study(
    prompts: Sequence[str],
    layers: tuple[str, ...],
    steps: int,
    guidance: float,
    negative: str | None,
) -> Study:
    """Study with the settings of one `capture`, without controls.

    It is copied from the default study: parsing would refuse prompts too few to be split.
    """
    default = Study()
    return default.model_copy(
        update={
            "prompts": default.prompts.model_copy(
                update={"items": tuple(prompts), "negative": negative}
            ),
            "sampling": default.sampling.model_copy(
                update={
                    "steps": steps,
                    "guidance": float(guidance),
                    "batch": len(prompts),
                    "threads": torch.get_num_threads(),
                }
            ),
            "capture": default.capture.model_copy(update={"layers": layers}),
            "controls": default.controls.model_copy(
                update={"permuted_weights": False, "latents": False}
            ),
        }
    )


def load_labeler(prop: str, name: str, weights: str | None = None, device: str = "auto") -> Labeler:
    """Load a labeler by property and name.

    Args:
        prop: foreground, depth, shading or class, or a registered property.
        name: name of the labeler, such as ``tabletop``, ``midas``, ``tracer`` or a registered one.
        weights: folder, file or hub id of its weights; None takes the labeler's default.
        device: auto, cpu, cuda or mps.

    Returns:
        a callable from images (n, y, x, rgb) uint8 to maps (n, y, x) float32, or to class
        probabilities (n, class).

    Raises:
        UserError: the labeler is unknown, or its package or weights are missing on this machine.

    Example::

        depth = lp.load_labeler("depth", "tabletop")(captured.images)
    """
    return registry.load_labeler(prop, LabelerSpec(name=name, weights=weights), pick_device(device))


def fit_probe(
    activations: np.ndarray | xr.DataArray,
    labels: np.ndarray | xr.DataArray,
    kind: str = "ridge",
    validation: float = 0.25,
    penalties: Sequence[float] = Probes().penalties,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe to activations and label maps.

    Labels at image size are averaged over each token's block of pixels, which gives the same fit
    as full-size labels with predictions upsampled by nearest.

    Args:
        activations: (sample, y, x, channel), any floating dtype.
        labels: (sample, Y, X); Y and X are multiples of y and x.  Masks are bool, or shares 0..1.
        kind: ``ridge``, or ``logistic`` for masks.
        validation: fraction of the samples on which the penalty is chosen; unused with one penalty.
        penalties: candidate L2 penalties, in units of the mean channel variance.
        seed: seed of the draw of validation samples.

    Returns:
        the probe: weight (channel,) float64, bias, the chosen penalty, and ``predict``.

    Raises:
        UserError: shapes do not match, samples are too few, or values are not finite.

    Example::

        probe = lp.fit_probe(captured[layer].sel(step=3), depth, kind="ridge")
        probe.predict(captured[layer].sel(step=3).values)
    """
    x, y = np.asarray(activations), np.asarray(labels)
    _check_fit_arguments(x, y, kind)
    tokens = block_means(y, (x.shape[1], x.shape[2]))
    order = np.random.default_rng(seed).permutation(len(x))
    heldout = round(validation * len(x)) if len(penalties) > 1 else 0
    if len(penalties) > 1 and not 0 < heldout < len(x):
        raise UserError(
            f"activations: too few samples for training and validation ({len(x)}). Fix: give more "
            "samples, or a single penalty"
        )
    # With a single penalty there is no choice to make, so any tokens serve as validation.
    train, validation_index = order[heldout:], order[:heldout] if heldout else order

    def rows(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[index].reshape(-1, x.shape[-1]), tokens[index].reshape(-1, 1)

    train_x, train_y = rows(train)
    heldout_x, heldout_y = rows(validation_index)
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(train_x, train_y))
    if kind == "ridge":
        statistics = SufficientStatistics.from_tokens(heldout_x, heldout_y)
        return fit_ridge(path, statistics, tuple(penalties))[0]
    return fit_logistic(
        train_x, train_y[:, 0], heldout_x, heldout_y[:, 0], tuple(penalties), path, 0
    )


def _check_fit_arguments(activations: np.ndarray, labels: np.ndarray, kind: str) -> None:
    """Raise a `UserError` for arrays or a kind that `fit_probe` cannot fit."""
    x, y = activations.shape, labels.shape
    if len(x) != 4 or len(y) != 3 or x[0] != y[0]:
        raise UserError(
            f"activations: they do not match the labels (shapes {x} and {y}). Fix: give (sample, "
            "y, x, channel) and (sample, Y, X) of the same samples"
        )
    if y[1] % x[1] or y[2] % x[2]:
        raise UserError(
            f"labels: {y[1]} x {y[2]} do not divide into {x[1]} x {x[2]} tokens. Fix: resize them"
        )
    if not (np.isfinite(activations).all() and np.isfinite(labels).all()):
        raise UserError("activations, labels: values are not finite. Fix: leave those samples out")
    if kind not in ("ridge", "logistic"):
        raise UserError(f"kind: {kind!r} is not known. Fix: take ridge or logistic")
