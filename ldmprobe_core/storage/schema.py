"""Schema of a run, which defines every group and array with dimensions and units.

Chunks follow the units of work.  A chunk holds, for example, a batch of samples at one step, or the
results of one cell (a sampler step and a layer).  A worker therefore writes whole chunks only, and
probing a cell reads only the chunks that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zarr

from ldmprobe_core.storage.group_builder import GroupBuilder
from ldmprobe_core.storage.units import kinds_in
from ldmprobe_core.study.batching import (
    BUFFERS,
    STATISTICS_GROUP,
    accumulation_units,
    gram_width,
    label_assignments,
)
from ldmprobe_core.study.layers import LATENTS, LayerShape
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample, n_stored_samples
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.splits import SPLITS


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
    """

    study: Study
    samples: list[Sample]
    shapes: dict[str, LayerShape]
    size: tuple[int, int]
    timesteps: list[float]
    classes: tuple[str, ...]
    units: dict[str, str]
    exact_properties: tuple[str, ...] = ()


class RunSchema(GroupBuilder):
    """Builder that creates all groups and arrays of a run, and writes their coordinates."""

    def __init__(self, root: zarr.Group, shape: RunShape) -> None:
        super().__init__(root)
        self.study, self.samples = shape.study, shape.samples
        self.shapes, (self.height, self.width) = shape.shapes, shape.size
        self.exact_properties = shape.exact_properties
        self.timesteps, self.classes = shape.timesteps, shape.classes
        self.units = shape.units
        self.stored_samples = self.samples[: n_stored_samples(self.samples, self.study)]
        first = len(self.stored_samples) if self.study.capture.keep == "statistics" else 0
        self.parts = len(accumulation_units(self.study, first, len(self.samples)))
        self.batch = min(self.study.sampling.batch, len(self.stored_samples))
        self.steps = len(self.timesteps)

    def build(self) -> None:
        """Create all groups of the run, each readable alone, with coordinates of its own."""
        self._samples()
        self._images()
        summed = self.study.capture.keep != "activations"
        for network, group in (("trained", "activations"), ("permuted", "activations_permuted")):
            if network == "trained" or self.study.controls.permuted_weights:
                for name, shape in self.shapes.items():
                    if network == "trained" or name != LATENTS:
                        self._activations(f"{group}/{name}", name, shape)
                        if summed:
                            self._sums(network, name, shape)
        if summed:
            self._label_sums()
        self._labels("labels", None)
        if self.exact_properties:
            self._truth()
        self._labels("labels_trajectory", "decoded latents after every step")
        self._labels("labels_clean", "the predicted clean image at every step")
        for name, shape in self.shapes.items():
            self._probes(f"probes/{name}", shape)
        for prop in self.study.labels.maps:
            self._scores(prop)
        for kind in kinds_in(self.study):
            if kind.create_groups is not None:
                kind.create_groups(self)
        self._progress()

    def _sample(self, group: zarr.Group, all_of_them: bool = False) -> None:
        samples = self.samples if all_of_them else self.stored_samples
        self.coordinate(group, "sample", [s.index for s in samples], "index of the image")

    def _step(self, group: zarr.Group) -> None:
        self.coordinate(group, "step", range(1, self.steps + 1), "sampler step, from 1")
        self.coordinate(
            group,
            "step",
            self.timesteps,
            "the scheduler's own number of the step",
            name="timestep",
        )

    def _pixels(self, group: zarr.Group, y: int | None = None, x: int | None = None) -> None:
        for dim, size, count in (("y", self.height, y), ("x", self.width, x)):
            count = count or size
            centers = (np.arange(count) + 0.5) * size / count
            self.coordinate(group, dim, centers, "centre, from the image's top left", "pixel")

    def _samples(self) -> None:
        group = self.group("samples", "Who was generated.")
        self._sample(group, all_of_them=True)
        for name, description in (
            ("prompt", "text the image was generated from"),
            ("category", "class that the prompt names; empty where unknown"),
            ("split", "which part the sample belongs to: " + ", ".join(SPLITS)),
            ("source_image", "file of the picture; empty where it was generated"),
        ):
            values = [getattr(s, name) or "" for s in self.samples]
            self.table(group, name, "sample", values, description)
        if any(s.source_digest for s in self.samples):
            digests = [s.source_digest or "" for s in self.samples]
            text = "hash of the contents of the source image and its maps"
            self.table(group, "source_digest", "sample", digests, text)
        seeds = [s.seed for s in self.samples]
        self.table(group, "seed", "sample", seeds, "seed of the sample's own generator")

    def _images(self) -> None:
        group = self.group("images", "Finished images and what each step looked like.")
        self._sample(group)
        self._step(group)
        self._pixels(group)
        self.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
        n, pixels = len(self.stored_samples), {"y": self.height, "x": self.width, "rgb": 3}
        self.array(
            group,
            "image",
            {"sample": n, **pixels},
            {"sample": self.batch},
            "uint8",
            "finished image",
            "0..255",
        )
        for name, description in (
            ("trajectory", "decoded latents after the step"),
            ("clean", "predicted clean image at the step, decoded"),
        ):
            self.array(
                group,
                name,
                {"sample": n, "step": self.steps, **pixels},
                {"sample": self.batch, "step": 1},
                "uint8",
                description,
                "0..255",
            )

    def _activations(self, path: str, name: str, shape: LayerShape) -> None:
        description = "the denoiser's input" if name == LATENTS else f"output of {name}"
        group = self.group(path, f"{description.capitalize()}, conditional half.")
        self._sample(group)
        self._step(group)
        self._pixels(group, shape.y, shape.x)
        self.coordinate(group, "channel", range(shape.channels), "channel of the layer")
        cells = {"sample": len(self.stored_samples), "step": self.steps}
        chunk = {"sample": self.batch, "step": 1}
        grid = {"y": shape.y, "x": shape.x, "channel": shape.channels}
        # Activations are stored without compression, because zstd would save only 6 to 12 % of the
        # bytes, which is not worth its computing time.
        self.array(
            group,
            "activation",
            {**cells, **grid},
            chunk,
            "float16",
            description,
            compress=False,
        )
        self.array(
            group,
            "nonfinite",
            cells,
            {"sample": self.batch},
            "int32",
            "values that are not finite in float16",
        )

    def _labels(self, path: str, source: str | None) -> None:
        group = self.group(path, f"Labels of {source or 'the finished images'}.")
        self._sample(group)
        sizes = {"sample": len(self.stored_samples)}
        chunks = {"sample": self.batch}
        if source:
            self._step(group)
            sizes["step"], chunks["step"] = self.steps, 1
        self._pixels(group)
        for prop in self.study.labels.maps:
            self.array(
                group,
                prop,
                {**sizes, "y": self.height, "x": self.width},
                chunks,
                "float16" if source else "float32",
                f"{prop} of {source or 'the finished image'}",
                self.units[prop],
            )
        if self.classes:
            self.coordinate(group, "class", list(self.classes), "class name")
            self.array(
                group,
                "class_score",
                {**sizes, "class": len(self.classes)},
                chunks,
                "float32",
                "probability of each class",
                self.units["class"],
            )

    def _truth(self) -> None:
        group = self.group("exact_maps", "Exact maps of the pictures, as they were given.")
        self._sample(group)
        self._pixels(group)
        for prop in self.exact_properties:
            self.array(
                group,
                prop,
                {"sample": len(self.stored_samples), "y": self.height, "x": self.width},
                {"sample": self.batch},
                "float32",
                f"exact {prop} of the picture",
            )

    def _sums(self, network: str, name: str, shape: LayerShape) -> None:
        """Create the arrays for the sufficient statistics of one layer, with two buffers each.

        ``progress/accumulated`` shows which of the two buffers is the active one.
        """
        group = self.group(
            f"{STATISTICS_GROUP}/{network}/{name}", f"Sums over training samples of {name}."
        )
        self._step(group)
        sizes, chunk = (
            {"accumulator": self.parts, "buffer": BUFFERS},
            {"accumulator": 1, "buffer": 1},
        )
        width = gram_width(self.study, network, shape.channels)
        assignments = " and again ".join(label_assignments(self.study, network))
        self.array(
            group,
            "gram",
            {**sizes, "step": self.steps, "entry": width * (width + 1) // 2},
            {**chunk, "step": 1},
            "float64",
            "lower triangle, row by row, of Z'Z: Z has a row a token, of its channels, 1, and its "
            f"block's mean {', '.join(self.study.labels.maps)} ({assignments})",
            compress=False,
        )
        self.array(
            group,
            "nonfinite",
            {**sizes, "step": self.steps},
            chunk,
            "int64",
            "values that are not finite in float16",
        )

    def _label_sums(self) -> None:
        group = self.group(
            f"{STATISTICS_GROUP}/labels", "Sums of the training samples' label maps."
        )
        self._pixels(group)
        sizes, chunk = (
            {"accumulator": self.parts, "buffer": BUFFERS},
            {"accumulator": 1, "buffer": 1},
        )
        for prop in self.study.labels.maps:
            maps = {**sizes, "y": self.height, "x": self.width}
            self.array(group, prop, maps, chunk, "float64", f"sum of {prop}", self.units[prop])
        self.array(group, "count", sizes, chunk, "int64", "training samples")

    def _probes(self, path: str, shape: LayerShape) -> None:
        group = self.group(path, "Linear probes: prediction = activation . weight + bias.")
        kinds, maps = self.study.linear_kinds, self.study.labels.maps
        self.coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self.coordinate(group, "property", list(maps), "what it reads")
        self._step(group)
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
        for name, description in (
            ("bias", "added to every prediction"),
            ("penalty", "L2 penalty that the validation part chose, in mean channel variances"),
            ("cut", "the prediction of a mask is foreground above it; NaN for other properties"),
        ):
            self.array(group, name, sizes, {"step": 1}, "float64", description)

    def _scores(self, prop: str) -> None:
        group = self.group(f"scores/{prop}", f"Scores of {prop} probes, held-out samples.")
        heldout = [s for s in self.samples if s.split != "train"]
        kinds, metrics = self.study.kinds, property_of(prop).metrics
        conditions = [condition.name for condition in self.study.conditions]
        self.coordinate(group, "condition", conditions, "the probe proper, and its controls")
        self.coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self.coordinate(group, "metric", list(metrics), "agreement with the label")
        self._step(group)
        self.coordinate(group, "layer", list(self.shapes), "denoiser module")
        self.coordinate(group, "sample", [s.index for s in heldout], "index of the image")
        self.coordinate(
            group, "sample", [s.split for s in heldout], "validation or test", name="split"
        )
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

    def _progress(self) -> None:
        group = self.group("progress", "Which units of work are complete (1).")
        batches = len(self.study.batches(len(self.stored_samples)))
        self.coordinate(group, "batch", range(batches), "batch of samples")
        self._step(group)
        self.coordinate(group, "layer", list(self.shapes), "denoiser module")
        sizes = {
            "batch": batches,
            "step": self.steps,
            "layer": len(self.shapes),
            "accumulator": self.parts,
        }
        for kind in kinds_in(self.study):
            self.array(
                group,
                kind.progress,
                {dim: sizes[dim] for dim in kind.dims},
                dict.fromkeys(kind.dims, 1),
                kind.dtype,
                kind.description,
                compress=False,
            )
