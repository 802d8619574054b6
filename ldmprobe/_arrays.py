"""One's own pipeline and arrays: capture activations, label images, fit a probe."""

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
    """Images and activations of one call of `capture`; a mapping from layer to activations.

    Attributes:
        images: finished images, (sample, y, x, rgb) uint8.
        layers: layer to (sample, step, y, x, channel) float16; coordinate ``timestep`` beside
            ``step``, which counts from 1.
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
    """Sample from a live diffusers pipeline and keep the denoiser's activations.

    The pipeline is used as it is: its weights, adapters, device and scheduler.  Under
    classifier-free guidance the conditional half is kept.

    Args:
        pipe: a diffusers pipeline of a registered architecture.
        prompts: one per image.
        layers: presets (self-attention, cross-attention, resnets, blocks) or globs over the
            denoiser's module names.
        steps: sampler steps.
        seeds: of each image's generator; None counts from 0.
        guidance: classifier-free guidance scale; 1 is none.

    Raises:
        UserError: an unknown architecture or layer, or seeds that do not match the prompts.

    Example::

        captured = lp.capture(pipe, ["a red car on a gray floor"], steps=15, seeds=[0])
        captured["mid_block.attentions.0.transformer_blocks.0.attn1"].sel(step=3)
    """
    chosen = list(range(len(prompts)) if seeds is None else seeds)
    if not prompts or len(chosen) != len(prompts):
        raise UserError(
            f"seeds: {len(chosen)} for {len(prompts)} prompts. Fix: give one seed for each prompt"
        )
    globs = (layers,) if isinstance(layers, str) else tuple(layers)
    # Copies instead of a parsed study: one prompt is enough here, and nothing is split.
    default = Study()
    study = default.model_copy(
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
            "capture": default.capture.model_copy(update={"layers": globs}),
            "controls": default.controls.model_copy(
                update={"permuted_weights": False, "latents": False}
            ),
        }
    )
    sampler = PipelineSampler(pipe, architecture_of(pipe), study)
    samples = [
        Sample(i, prompt, seed, None, "train")
        for i, (prompt, seed) in enumerate(zip(prompts, chosen, strict=True))
    ]
    buffer = ActivationBuffer()
    batch = sampler.sample(samples, buffer, step_images=False)
    activations = buffer.pop()["trained"]
    coordinates = {
        "sample": range(len(samples)),
        "step": range(1, len(batch.timestep) + 1),
        "timestep": ("step", batch.timestep),
    }
    dims = ("sample", "step", "y", "x", "channel")
    return Captured(
        batch.image,
        {
            name: xr.DataArray(values, dims=dims, coords=coordinates, name="activation")
            for name, values in activations.values.items()
        },
    )


def load_labeler(prop: str, name: str, weights: str | None = None, device: str = "auto") -> Labeler:
    """Load a labeler by property and name.

    Args:
        prop: foreground, depth, shading or class, or a registered property.
        name: such as ``tabletop``, ``midas``, ``tracer``, or a registered one.
        weights: folder, file or hub id of its weights; None takes its usual ones.
        device: auto, cpu, cuda or mps.

    Returns:
        a callable from images (n, y, x, rgb) uint8 to maps (n, y, x) float32, or to class
        probabilities (n, class).

    Raises:
        UserError: no such labeler, or its package or weights are not on this machine.

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
    """Fit a linear probe to one's own activations and label maps.

    Labels of image size are averaged over each token's block of pixels, which gives the same fit
    as full-size labels and nearest upsampling.

    Args:
        activations: (sample, y, x, channel), any floating dtype.
        labels: (sample, Y, X); Y and X are multiples of y and x.  Masks as bool or shares 0..1.
        kind: ``ridge``, or ``logistic`` for masks.
        validation: share of the samples that chooses the penalty; with a single penalty, none.
        penalties: candidate L2 penalties, in units of the mean channel variance.
        seed: of the choice of validation samples.

    Returns:
        weight (channel,) float64, bias, the chosen penalty, and ``predict``.

    Raises:
        UserError: shapes that do not match, too few samples, or values that are not finite.

    Example::

        probe = lp.fit_probe(captured[layer].sel(step=3), depth, kind="ridge")
        probe.predict(captured[layer].sel(step=3).values)
    """
    x, y = np.asarray(activations), np.asarray(labels)
    if x.ndim != 4 or y.ndim != 3 or len(x) != len(y):
        raise UserError(
            f"activations: shape {x.shape} with labels of shape {y.shape}. Fix: give (sample, y, "
            "x, channel) and (sample, Y, X) of the same samples"
        )
    if y.shape[1] % x.shape[1] or y.shape[2] % x.shape[2]:
        raise UserError(
            f"labels: {y.shape[1]} x {y.shape[2]} do not divide into {x.shape[1]} x {x.shape[2]} "
            "tokens. Fix: resize them"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("activations, labels: values are not finite. Fix: leave those samples out")
    if kind not in ("ridge", "logistic"):
        raise UserError(f"kind: {kind!r} is not known. Fix: take ridge or logistic")
    tokens = block_means(y, (x.shape[1], x.shape[2]))
    order = np.random.default_rng(seed).permutation(len(x))
    heldout = round(validation * len(x)) if len(penalties) > 1 else 0
    if len(penalties) > 1 and not 0 < heldout < len(x):
        raise UserError(
            f"activations: {len(x)} samples leave none to choose a penalty by. Fix: give more "
            "samples, or a single penalty"
        )
    train, choose = order[heldout:], order[:heldout] if heldout else order

    def rows(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[index].reshape(-1, x.shape[-1]), tokens[index].reshape(-1, 1)

    train_x, train_y = rows(train)
    choose_x, choose_y = rows(choose)
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(train_x, train_y))
    if kind == "ridge":
        chosen = SufficientStatistics.from_tokens(choose_x, choose_y)
        return fit_ridge(path, chosen, tuple(penalties))[0]
    return fit_logistic(train_x, train_y[:, 0], choose_x, choose_y[:, 0], tuple(penalties), path, 0)
