"""Functions of the public API that take a user's own diffusers pipeline or arrays.

They capture activations from a diffusers pipeline, label images, and fit linear probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from ldmprobe._capture_study import capture_study, checked_inputs
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import registry
from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.models.architectures.registry import architecture_of
from ldmprobe_core.models.devices import pick_device
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.sources.pipeline import require_eval
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.logistic import SoftLabels, fit_logistic
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.probe_sections import LabelerSpec, Probes
from ldmprobe_core.study.samples import Sample


@dataclass(frozen=True)
class Captured(Mapping[str, xr.DataArray]):
    """Final images and activations that `capture` returns.

    The object is also a mapping, so that ``captured[layer]`` gives the activations of a layer.

    Attributes:
        images: final images, (sample, y, x, rgb) uint8.
        layers: activations by layer name, each (sample, step, y, x, channel) float16.  Steps count
            from 1, and the coordinate ``timestep`` gives the scheduler's timestep of each step.
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
    """Generate images with a loaded diffusers pipeline, and record the denoiser's activations.

    The images are generated with the pipeline's own weights, adapters, device and scheduler.  With
    classifier-free guidance, the denoiser also runs without the prompt, but only the activations
    of its run with the prompt are recorded.

    Args:
        pipe: a diffusers pipeline of a registered architecture.
        prompts: one prompt for each image.  All images are generated in a single batch.
        layers: layers to record, as names of presets (self-attention, cross-attention, resnets or
            blocks) or as glob patterns that match names of the denoiser's modules.  The suffixes
            ``@query``, ``@key``, ``@value``, ``@head0``, ``@words`` (attention to each token of the
            prompt) and ``@tokens`` (attention to each token of the image) select a point inside
            attention layers.
        steps: number of denoising steps.
        seeds: seed of each image's random generator; None uses the numbers from 0 on.
        guidance: scale of the classifier-free guidance; 1 turns guidance off.
        negative: negative prompt for all images, or None.

    Raises:
        UserError: the architecture or a layer is unknown, the number of seeds differs from the
            number of prompts, an argument is of another type or out of its range, or a network is
            in training mode.

    Example::

        captured = lp.capture(pipe, ["a red car on a gray floor"], steps=15, seeds=[0])
        captured["mid_block.attentions.0.transformer_blocks.0.attn1"].sel(step=3)
    """
    texts, image_seeds = checked_inputs(prompts, seeds)
    study = capture_study(texts, layers, steps, guidance, negative)
    architecture = architecture_of(pipe)
    require_eval(pipe)
    sampler = PipelineSampler(pipe, architecture, study)
    samples = [
        Sample(i, prompt, seed, None, "train")
        for i, (prompt, seed) in enumerate(zip(texts, image_seeds, strict=True))
    ]
    buffer = ActivationBuffer()
    batch = sampler.sample(samples, buffer, step_images=False)
    activations = buffer.pop()["trained"].values
    return Captured(batch.image, _label_axes(activations, np.asarray(batch.timestep)))


def _label_axes(
    activations: Mapping[str, np.ndarray], timesteps: np.ndarray | Sequence[float]
) -> dict[str, xr.DataArray]:
    """Convert activations (sample, step, y, x, channel) to `DataArray`s with named dimensions."""
    dims = ("sample", "step", "y", "x", "channel")
    steps = {"step": range(1, len(timesteps) + 1), "timestep": ("step", timesteps)}
    return {
        layer: xr.DataArray(
            values, dims=dims, coords={"sample": range(len(values)), **steps}, name="activation"
        )
        for layer, values in activations.items()
    }


def load_labeler(prop: str, name: str, weights: str | None = None, device: str = "auto") -> Labeler:
    """Load a labeler: a function that computes ground-truth maps, such as depth, from images.

    Args:
        prop: property to predict: foreground, depth, shading, class, a component of a vector such
            as ``normals_x``, or the name of a property that you have registered.
        name: name of the labeler, such as ``tabletop``, ``midas``, ``tracer``, or one that you have
            registered.
        weights: folder, file or Hugging Face id of the labeler's weights; None uses its default.
        device: device to run on, which is auto, cpu, cuda or mps.

    Returns:
        a function that takes images (n, y, x, rgb) uint8.  It returns maps (n, y, x) float32, or
        class probabilities (n, class) if the property is class.

    Raises:
        UserError: the labeler is unknown, or its package or weights are missing on this machine.
            The function raises it for arrays that are not images.

    Example::

        depth = lp.load_labeler("depth", "tabletop")(captured.images)
    """
    for key, value in (("prop", prop), ("name", name), ("device", device)):
        if not isinstance(value, str):
            raise UserError(f"{key}: {value!r:.60} is not text. Fix: give a name")
    if not isinstance(weights, str | None):
        raise UserError(f"weights: {weights!r:.60} is not text. Fix: give a path, or a hub id")
    spec = LabelerSpec(name=name, weights=weights)
    return _ImageLabeler(registry.load_labeler(prop, spec, pick_device(device)))


class _ImageLabeler:
    """Wrapper of a labeler that raises an error for arrays that are not uint8 images.

    Attributes other than `labeler` are those of the labeler.
    """

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.labeler, name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute the labels of one or more images, (n, y, x, rgb) uint8.

        Raises:
            UserError: the images have another shape or data type.
        """
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
            raise UserError(
                f"images: not one or more images (n, y, x, rgb) of uint8 (shape {array.shape}, "
                f"type {array.dtype}). Fix: convert them, and scale floats from 0..1 to 0..255"
            )
        return self.labeler(array)


def fit_probe(
    activations: np.ndarray | xr.DataArray,
    labels: np.ndarray | xr.DataArray,
    kind: str = "ridge",
    validation: float = 0.25,
    penalties: Sequence[float] = Probes().penalties,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe that predicts label maps from activations, without a position term.

    It is the ``plain_ridge`` or ``plain_logistic`` of a study; `ridge` and `logistic` there add to
    the training mean at each position.  A position is trained on the mean of the labels in its
    block of pixels, as in a fit to all pixels in which a prediction applies to the whole block.

    Args:
        activations: (sample, y, x, channel) of floats; a `DataArray` may have another order.
        labels: (sample, Y, X), where Y and X are multiples of y and x; named sample, y and x in a
            `DataArray`.  A mask is boolean, or gives a fraction from 0 to 1 for each pixel.
        kind: ``ridge``, or ``logistic`` for masks.
        validation: fraction of the samples that is set aside to choose the penalty.  It has no
            effect if there is only one penalty.
        penalties: candidate L2 penalties, as multiples of the channels' mean variance.
        seed: seed of the random choice of validation samples.

    Returns:
        the probe: ``weight`` (channel,) float64, ``bias``, chosen ``penalty``, and ``predict``.
        ``cut`` has the best Dice on the training samples; NaN for ridge unless labels are boolean.

    Raises:
        UserError: shapes or named samples do not match, samples are too few, values are not
            finite, or a setting is out of its range.

    Example::

        probe = lp.fit_probe(captured[layer].sel(step=3), depth, kind="ridge")
        probe.predict(captured[layer].sel(step=3).values)
    """
    _require_same_samples(activations, labels)
    x, y = _ordered(activations, "sample y x channel"), _ordered(labels, "sample y x")
    _check_fit_arguments(x, y, kind)
    _check_fit_settings(validation, penalties, seed)
    tokens = block_means(y, (x.shape[1], x.shape[2]))
    order = np.random.default_rng(seed).permutation(len(x))
    heldout = round(validation * len(x)) if len(penalties) > 1 else 0
    if len(penalties) > 1 and not 0 < heldout < len(x):
        raise UserError(
            f"activations: too few samples for training and validation ({len(x)}). Fix: give more "
            "samples, or a single value in penalties"
        )
    # Validation samples serve to choose the penalty.  With a single penalty there is no choice, so
    # all samples are used for training.  `_fit` requires validation samples nevertheless: it gets
    # the training samples, which do not affect the result.
    train, validation_index = order[heldout:], order[:heldout] if heldout else order

    def rows(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[index].reshape(-1, x.shape[-1]), tokens[index].reshape(-1, 1)

    probe = _fit(*rows(train), *rows(validation_index), kind, tuple(penalties))
    is_mask = kind == "logistic" or y.dtype == bool
    return _with_best_cut(probe, x[train], tokens[train]) if is_mask else probe


def _ordered(array: Any, dims: str) -> np.ndarray:
    """Return the values of an array; a `DataArray` with all of these dimensions is transposed."""
    names = dims.split()
    is_named = isinstance(array, xr.DataArray) and set(array.dims) == set(names)
    return np.asarray(array.transpose(*names) if is_named else array)


def _require_same_samples(activations: Any, labels: Any) -> None:
    """Raise `UserError` if both arrays name their samples, and the names or their order differ."""
    pair = (activations, labels)
    if not all(isinstance(one, xr.DataArray) and "sample" in one.coords for one in pair):
        return
    first, other = (np.atleast_1d(one.coords["sample"].values) for one in pair)
    if not np.array_equal(first, other):
        raise UserError(
            f"labels: their samples ({_first_few(other)}) are not those of the activations "
            f"({_first_few(first)}). Fix: select the same samples in the same order, such as "
            "labels.sel(sample=activations.sample)"
        )


def _first_few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")


def _fit(
    x: np.ndarray,
    y: np.ndarray,
    validation_x: np.ndarray,
    validation_y: np.ndarray,
    kind: str,
    penalties: tuple[float, ...],
) -> LinearProbe:
    """Fit a linear probe to activations (token, channel) and labels (token, 1)."""
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(x, y))
    if kind == "ridge":
        validation = SufficientStatistics.from_tokens(validation_x, validation_y)
        return fit_ridge(path, validation, penalties)[0]
    labels = SoftLabels(x, y[:, 0]), SoftLabels(validation_x, validation_y[:, 0])
    return fit_logistic(*labels, penalties, path, 0)


def _with_best_cut(probe: LinearProbe, activations: np.ndarray, shares: np.ndarray) -> LinearProbe:
    """Return a copy of a mask probe whose threshold ``cut`` maximises Dice on these samples."""
    predicted = flatten_maps(probe.predict(activations))
    return replace(probe, cut=best_cut(predicted, flatten_maps(shares)))


def _check_fit_arguments(activations: np.ndarray, labels: np.ndarray, kind: str) -> None:
    """Raise `UserError` if `fit_probe` cannot fit a probe of this kind to these arrays."""
    x, y = activations.shape, labels.shape
    if len(x) != 4 or len(y) != 3 or x[0] != y[0]:
        raise UserError(
            f"activations: their shape does not match that of the labels (activations {x}, labels "
            f"{y}). Fix: give activations (sample, y, x, channel) and labels (sample, Y, X) of the "
            "same samples"
        )
    if y[1] % x[1] or y[2] % x[2]:
        raise UserError(
            f"labels: maps of {y[1]} x {y[2]} pixels do not divide evenly into {x[1]} x {x[2]} "
            "tokens. Fix: resize the labels to a multiple of the activations' size, or if the "
            "channels come first there, move them: activations (sample, y, x, channel)"
        )
    if y[1] // x[1] != y[2] // x[2]:
        raise UserError(
            f"activations: each of {x[1]} x {x[2]} tokens would stand for {y[1] // x[1]} x "
            f"{y[2] // x[2]} pixels of the labels, which is no square. Fix: give activations "
            "(sample, y, x, channel), whose channels come last, and labels of the same shape of "
            "image"
        )
    for name, values in (("activations", activations), ("labels", labels)):
        if values.dtype.kind not in "biuf" or not values.size:
            raise UserError(
                f"{name}: the array is empty or not of real numbers (type {values.dtype}, shape "
                f"{values.shape}). Fix: give a non-empty array of floats"
            )
    if not (np.isfinite(activations).all() and np.isfinite(labels).all()):
        raise UserError(
            "activations, labels: some values are not finite. Fix: remove the samples that have "
            "NaN or infinite values"
        )
    if kind not in ("ridge", "logistic"):
        raise UserError(f"kind: {kind!r} is not a kind of probe. Fix: use ridge or logistic")
    if kind == "logistic" and not (labels.min() >= 0 and labels.max() <= 1):
        raise UserError(
            f"labels: a logistic probe needs a mask with values from 0 to 1 ({labels.min():g} to "
            f"{labels.max():g}). Fix: give a boolean mask, or use ridge"
        )


def _check_fit_settings(validation: Any, penalties: Any, seed: Any) -> None:
    """Raise `UserError` if the settings of `fit_probe` are not numbers in their ranges."""
    values = np.asarray(penalties)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
        raise UserError(
            f"penalties: not a list of numbers ({penalties!r:.60}). Fix: give one or more numbers"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UserError(
            f"penalties: not all are finite and above 0 ({penalties!r:.60}). Fix: give finite "
            "numbers above 0"
        )
    if not isinstance(validation, (int, float, np.number)) or not 0 < validation < 1:
        raise UserError(
            f"validation: not a fraction between 0 and 1 ({validation!r:.40}). Fix: give one above "
            "0 and below 1, or leave it out"
        )
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(
            f"seed: not a whole number of at least 0 ({seed!r:.40}). Fix: give 0 or a larger number"
        )
