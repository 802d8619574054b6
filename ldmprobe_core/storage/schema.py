"""Schema of a run, which defines every group and array with dimensions and units.

Chunks follow the units of work.  A chunk holds, for example, a batch of samples at one step, or the
results of one cell (a sampler step and a layer).  A worker therefore writes whole chunks only, and
probing a cell reads only the chunks that it needs.

Some groups hold a part of the samples, which their coordinate ``sample`` lists.  The groups of step
images have chunks of one sample with all of its steps, because a batch may have any number of these
samples.  The groups of the permuted denoiser hold complete batches.
"""

from __future__ import annotations

import numpy as np

from ldmprobe_core.storage.probe_schema import ProbeSchema
from ldmprobe_core.storage.units import kinds_in
from ldmprobe_core.study.layers import CLEAN_PIXELS, INPUT_CONTROLS, LATENTS, LayerShape
from ldmprobe_core.study.splits import SPLITS

_INPUTS = {
    LATENTS: "the denoiser's input",
    CLEAN_PIXELS: "mean of the predicted clean image's pixels in each block, 0 to 1",
}


class RunSchema(ProbeSchema):
    """Builder that creates every group and array of a run, and the values of coordinates."""

    def build(self) -> None:
        """Create all groups of the run; each has its own coordinates, and can be opened alone."""
        self._samples()
        if self.text_channels:
            self._prompts()
        self._images()
        self._step_images()
        summed = self.study.capture.keep != "activations"
        for network, group in (("trained", "activations"), ("permuted", "activations_permuted")):
            if network == "trained" or self.study.controls.untrained:
                for name, shape in self.shapes.items():
                    if network == "trained" or name not in INPUT_CONTROLS:
                        self._activations(group, name, shape)
                        if summed and name != CLEAN_PIXELS:
                            self.add_sums(network, name, shape.as_probed(name))
        if summed:
            self.add_label_sums()
        self._labels("labels", None)
        if self.exact_properties:
            self._truth()
        self._labels("labels_trajectory", "decoded latents after every step")
        self._labels("labels_clean", "the predicted clean image at every step")
        for name, shape in self.shapes.items():
            self.add_probes(f"probes/{name}", shape.as_probed(name))
        for prop in self.study.labels.maps:
            self.add_scores(prop)
        for kind in kinds_in(self.study):
            if kind.create_groups is not None:
                kind.create_groups(self)
        self._progress()

    def _samples(self) -> None:
        """Create the group ``samples``, with the prompt, seed and split of every sample."""
        group = self.group("samples", "Who was generated.")
        self.add_sample(group, np.array([sample.index for sample in self.samples]))
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

    def _prompts(self) -> None:
        """Create the group of prompt embeddings."""
        group = self.group("prompts", "What the denoiser was told of each sample.")
        self.add_sample(group)
        sizes = {"sample": len(self.stored_samples), "feature": self.text_channels}
        text = "mean over the text tokens of the prompt's embedding"
        self.array(group, "embedding", sizes, {"sample": self.batch}, "float32", text)

    def _images(self) -> None:
        """Create the group of finished images."""
        group = self.group("images", "Finished images.")
        self.add_sample(group)
        self.add_pixels(group)
        self.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
        self.array(
            group,
            "image",
            {"sample": len(self.stored_samples), "y": self.height, "x": self.width, "rgb": 3},
            {"sample": self.batch},
            "uint8",
            "finished image",
            "0..255",
        )

    def _step_images(self) -> None:
        """Create the group of images decoded at each step."""
        group = self.group("step_images", "What each step looked like, of some of the samples.")
        sizes = self.add_step_image_axes(group)
        self.add_pixels(group)
        self.coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
        for name, description in (
            ("trajectory", "decoded latents after the step"),
            ("clean", "predicted clean image at the step, decoded"),
        ):
            self.array(
                group,
                name,
                {**sizes, "y": self.height, "x": self.width, "rgb": 3},
                {"sample": 1},
                "uint8",
                description,
                "0..255",
            )

    def _activations(self, top: str, name: str, shape: LayerShape) -> None:
        """Create the group of one layer's activations, below the group ``top``."""
        description = _INPUTS.get(name, f"output of {name}")
        group = self.group(f"{top}/{name}", f"{description.capitalize()}, conditional half.")
        if name == CLEAN_PIXELS:
            cells = self.add_step_image_axes(group)
            chunk = {"sample": 1}
        else:
            index = self.permuted if top == "activations_permuted" else self.stored
            self.add_sample(group, index)
            self.add_step(group)
            cells = {"sample": len(index), "step": self.steps}
            chunk = {"sample": self.batch, "step": 1}
        self.add_pixels(group, shape.y, shape.x)
        self.coordinate(group, "channel", range(shape.channels), "channel of the layer")
        grid = {"y": shape.y, "x": shape.x, "channel": shape.channels}
        # Activations are stored without compression, because zstd would save only 6 to 12 % of the
        # bytes, which is not worth its computing time.
        self.array(
            group,
            "activation",
            {**cells, **grid},
            chunk,
            self.study.capture.dtype,
            description,
            compress=False,
        )
        self.array(
            group,
            "nonfinite",
            cells,
            {"sample": chunk["sample"]},
            "int32",
            f"values that are not finite in {self.study.capture.dtype}",
        )

    def _labels(self, path: str, source: str | None) -> None:
        """Create a group of labels of finished images, or of step images if ``source`` is given."""
        group = self.group(path, f"Labels of {source or 'the finished images'}.")
        if source:
            sizes, chunks = self.add_step_image_axes(group), {"sample": 1}
        else:
            self.add_sample(group)
            sizes, chunks = {"sample": len(self.stored_samples)}, {"sample": self.batch}
        self.add_pixels(group)
        for prop in self.study.labels.maps:
            self.array(
                group,
                prop,
                {**sizes, "y": self.height, "x": self.width},
                chunks,
                "float16" if source and prop not in self.wide else "float32",
                f"{prop} of {source or 'the finished image'}",
                self.units[prop],
            )
        for prop in () if source else self.study.labels.numbers:
            self.array(
                group,
                prop,
                sizes,
                chunks,
                "float32",
                f"{prop} of the finished image",
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
        """Create the group of ground-truth maps."""
        group = self.group("exact_maps", "Exact maps of the pictures, as they were given.")
        self.add_sample(group)
        self.add_pixels(group)
        for prop in self.exact_properties:
            self.array(
                group,
                prop,
                {"sample": len(self.stored_samples), "y": self.height, "x": self.width},
                {"sample": self.batch},
                "float32",
                f"exact {prop} of the picture",
            )

    def _progress(self) -> None:
        """Create the group of progress arrays, one for each kind of unit."""
        group = self.group("progress", "Which units of work are complete (1).")
        batches = len(self.study.batches(len(self.stored_samples)))
        self.coordinate(group, "batch", range(batches), "batch of samples")
        self.add_step(group)
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
