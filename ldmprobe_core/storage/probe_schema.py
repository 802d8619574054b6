"""Schema of the groups of statistics, probes and scores; `RunSchema` adds the other groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zarr

from ldmprobe_core.storage.group_builder import GroupBuilder
from ldmprobe_core.study.batching import (
    BUFFERS,
    STATISTICS_GROUP,
    accumulation_units,
    gram_width,
    n_positions,
    permuted_samples,
    step_image_samples,
    step_image_steps,
    summed_columns,
)
from ldmprobe_core.study.layers import LayerShape
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample, n_stored_samples
from ldmprobe_core.study.schema import Study

_ONE_BUFFER = {"accumulator": 1, "buffer": 1}


@dataclass(frozen=True)
class RunShape:
    """Sizes and coordinates of a run's arrays.

    Attributes:
        study: study that the run carries out.
        samples: all samples, in the order of their indices.
        shapes: shape of every probe input by name, in the denoiser's order.
        size: height and width of the images in pixels.
        timesteps: the scheduler's timestep at every sampler step.
        classes: names of the classes; empty if classes are not labeled.
        units: unit of the labels, by property.
        exact_properties: properties for which every source image has an exact map; empty if images
            are generated.
        text_channels: number of channels of the prompts' embeddings; 0 for models without prompts.
        wide: properties whose labels of step images are stored in float32 instead of float16,
            because the range of their labelers' values is unknown.
    """

    study: Study
    samples: list[Sample]
    shapes: dict[str, LayerShape]
    size: tuple[int, int]
    timesteps: list[float]
    classes: tuple[str, ...]
    units: dict[str, str]
    exact_properties: tuple[str, ...] = ()
    text_channels: int = 0
    wide: frozenset[str] = frozenset()


class ProbeSchema(GroupBuilder):
    """Builder of the groups of statistics, probes and scores, with methods to add coordinates.

    Args:
        root: root group of the run.
        shape: sizes and coordinates of the arrays.
    """

    def __init__(self, root: zarr.Group, shape: RunShape) -> None:
        super().__init__(root)
        self.study, self.samples = shape.study, shape.samples
        self.shapes, (self.height, self.width) = shape.shapes, shape.size
        self.exact_properties, self.wide = shape.exact_properties, shape.wide
        self.timesteps, self.classes = shape.timesteps, shape.classes
        self.units, self.text_channels = shape.units, shape.text_channels
        self.stored_samples = self.samples[: n_stored_samples(self.samples, self.study)]
        self.stored = np.array([sample.index for sample in self.stored_samples])
        self.with_step_images = step_image_samples(self.study, self.samples)
        permuted = permuted_samples(self.study, self.samples)
        self.permuted = permuted[permuted < len(self.stored)]
        first = len(self.stored_samples) if self.study.capture.keep == "statistics" else 0
        self.parts = len(accumulation_units(self.study, first, len(self.samples)))
        self.batch = min(self.study.sampling.batch, len(self.stored_samples))
        self.steps = len(self.timesteps)
        self.decoded_steps = step_image_steps(self.study, self.steps)

    def add_sample(self, group: zarr.Group, index: np.ndarray | None = None) -> None:
        """Add the coordinate ``sample``, with the indices ``index`` (n,) or all stored samples."""
        values = self.stored if index is None else index
        self.coordinate(group, "sample", values, "index of the image")

    def add_step_image_axes(self, group: zarr.Group) -> dict[str, int]:
        """Add sample and step coordinates for images decoded at sampler steps.

        Returns:
            sizes of the dimensions ``sample`` and ``step``.
        """
        self.add_sample(group, self.with_step_images)
        self.add_step(group, self.decoded_steps)
        return {"sample": len(self.with_step_images), "step": len(self.decoded_steps)}

    def add_step(self, group: zarr.Group, index: np.ndarray | None = None) -> None:
        """Add the coordinates ``step`` and ``timestep``, for the steps in ``index`` or for all."""
        index = np.arange(self.steps) if index is None else index
        self.coordinate(group, "step", index + 1, "sampler step, from 1")
        self.coordinate(
            group,
            "step",
            np.asarray(self.timesteps)[index],
            "the scheduler's own number of the step",
            name="timestep",
        )

    def add_pixels(self, group: zarr.Group, y: int | None = None, x: int | None = None) -> None:
        """Add the coordinates ``y`` and ``x``: centres of pixels or of tokens, in pixels.

        Args:
            y: number of tokens down the image; None for coordinates of the image's pixels.
            x: number of tokens across the image; None for coordinates of the image's pixels.
        """
        for dim, size, count in (("y", self.height, y), ("x", self.width, x)):
            count = count or size
            centers = (np.arange(count) + 0.5) * size / count
            self.coordinate(group, dim, centers, "centre, from the image's top left", "pixel")

    def add_sums(self, network: str, name: str, shape: LayerShape) -> None:
        """Create the arrays of sufficient statistics of one layer, or of an input such as latents.

        Each accumulator has two buffers: one holds the sums of all complete units, and the next
        unit writes its sums to the other.  ``progress/accumulated`` shows which is which.
        """
        group = self.group(
            f"{STATISTICS_GROUP}/{network}/{name}", f"Sums over training samples of {name}."
        )
        self.add_step(group)
        sizes, chunk = {"accumulator": self.parts, "buffer": BUFFERS}, _ONE_BUFFER
        width = gram_width(self.study, network, shape.channels)
        positions = n_positions((shape.y, shape.x))
        labels = ", ".join(
            f"{column.prop} ({column.assignment} {column.draw})"
            for column in summed_columns(self.study, network)
        )
        self.array(
            group,
            "gram",
            {**sizes, "step": self.steps, "entry": width * (width + 1) // 2},
            {**chunk, "step": 1},
            "float64",
            "lower triangle, row by row, of Z'Z: Z has a row a token, of its channels, 1, and its "
            f"block's mean {labels}",
            compress=False,
        )
        self.array(
            group,
            "by_position",
            {**sizes, "step": self.steps, "position": positions, "column": width},
            {**chunk, "step": 1},
            "float64",
            "sum of the rows of Z over the tokens of each position",
            compress=False,
        )
        self.array(
            group,
            "nonfinite",
            {**sizes, "step": self.steps},
            chunk,
            "int64",
            f"values that are not finite in {self.study.capture.dtype}",
        )

    def add_label_sums(self) -> None:
        """Create the arrays that hold the sums of the training samples' label maps."""
        group = self.group(
            f"{STATISTICS_GROUP}/labels", "Sums of the training samples' label maps."
        )
        self.add_pixels(group)
        sizes, chunk = {"accumulator": self.parts, "buffer": BUFFERS}, _ONE_BUFFER
        for prop in self.study.labels.maps:
            maps = {**sizes, "y": self.height, "x": self.width}
            self.array(group, prop, maps, chunk, "float64", f"sum of {prop}", self.units[prop])
        self.array(group, "count", sizes, chunk, "int64", "training samples")

    def add_probes(self, path: str, shape: LayerShape) -> None:
        """Create the arrays of the linear probes of one layer, or of an input such as latents."""
        group = self.group(
            path, "Linear probes: prediction = activation . weight + bias + position."
        )
        kinds, maps = self.study.linear_kinds, self.study.labels.maps
        self.coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self.coordinate(group, "property", list(maps), "what it reads")
        self.add_pixels(group, shape.y, shape.x)
        self.add_step(group)
        self.coordinate(group, "channel", range(shape.channels), "channel of the layer")
        sizes = {"kind": len(kinds), "property": len(maps), "step": self.steps}
        self.array(
            group,
            "weight",
            {**sizes, "channel": shape.channels},
            {"step": 1},
            "float64",
            "of each channel; a logistic probe gives a logit",
        )
        self.array(
            group,
            "position",
            {**sizes, "y": shape.y, "x": shape.x},
            {"step": 1},
            "float64",
            "added to the prediction of each token; 0 for kinds without a position term",
        )
        for name, description in (
            ("bias", "added to every prediction"),
            ("penalty", "L2 penalty that the validation part chose, in mean channel variances"),
            ("cut", "the prediction of a mask is foreground above it; NaN for other properties"),
        ):
            self.array(group, name, sizes, {"step": 1}, "float64", description)

    def add_scores(self, prop: str) -> None:
        """Create the arrays of the scores of one property."""
        group = self.group(f"scores/{prop}", f"Scores of {prop} probes, held-out samples.")
        heldout = [s for s in self.samples if s.split != "train"]
        kinds, metrics = self.study.kinds, property_of(prop).metrics
        conditions = [condition.name for condition in self.study.conditions]
        self.coordinate(group, "condition", conditions, "the probe proper, and its controls")
        self.coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self.coordinate(group, "metric", list(metrics), "agreement with the label")
        self.add_step(group)
        self.coordinate(group, "layer", list(self.shapes), "denoiser module")
        self.coordinate(group, "sample", [s.index for s in heldout], "index of the image")
        self.coordinate(
            group, "sample", [s.split for s in heldout], "validation or test", name="split"
        )
        for name, members, description in (
            ("has_permuted", self.permuted, "the permuted denoiser ran on the sample"),
            ("has_step_images", self.with_step_images, "the sample has step images"),
        ):
            values = np.isin([s.index for s in heldout], members)
            self.coordinate(group, "sample", values, description, name=name)
        sizes = {
            "condition": len(conditions),
            "kind": len(kinds),
            "metric": len(metrics),
            "step": self.steps,
            "layer": len(self.shapes),
            "sample": len(heldout),
        }
        self.array(
            group,
            "score",
            sizes,
            {"step": 1, "layer": 1},
            "float32",
            "score of one probe on one sample; NaN where undefined or not computed",
        )
        for condition in self.study.conditions:
            if condition.repeated and self.study.controls.enabled(condition.name):
                draws = {"draw": self.study.controls.permutations}
                self.array(
                    group,
                    f"{condition.name}_draws",
                    draws | {name: sizes[name] for name in ("step", "layer", "sample")},
                    {"step": 1, "layer": 1},
                    "float32",
                    f"score in each draw of {condition.title}, in the first metric",
                )
