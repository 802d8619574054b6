"""A run's data: one Zarr v3 group in a folder or a bucket, written by region, read with xarray.

This is the only module that knows where things lie.  The whole hierarchy is laid out when a run is
created; workers then fill regions that are whole chunks, so that no two writers ever share one.
A unit of work is either complete or absent: its mark is written after its data.

Layout (dimensions in brackets)::

    samples/                   prompt, seed, category, split [sample]
    images/                    image [sample, y, x, rgb]; trajectory, clean [sample, step, ...]
    activations/<layer>/       activation [sample, step, y, x, channel]; nonfinite [sample, step]
    permuted/<layer>/          the same, of the denoiser with permuted weights
    labels/                    foreground, depth, shading [sample, y, x]; class [sample, class]
    labels_trajectory/         the same labelers on the decoded latents [sample, step, ...]
    labels_clean/              and on the predicted clean images [sample, step, ...]
    probes/<layer>/            weight [kind, property, step, channel]; bias, penalty [kind, ...]
    scores/<property>/         score [variant, kind, metric, step, layer, sample]
    marks/                     generated, labeled [batch]; probed [step, layer]
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore, StoreLike

from ldmprobe_core.capture import LayerShape
from ldmprobe_core.errors import UserError
from ldmprobe_core.metrics import METRICS
from ldmprobe_core.prompts import SPLITS, Sample
from ldmprobe_core.study import Study, parse_study

VARIANTS = ("real", "shuffled", "permuted")
"""Probes proper, probes on shuffled labels, probes on the permuted denoiser."""

_S3_OPTIONS = {"use_listings_cache": False}  # another worker's chunk must not read as a hole


class Run:
    """A study carried out, addressed by its URL.

    Args:
        url: a local folder, or ``s3://bucket/prefix``; credentials and endpoint come from the
            environment, as for any S3 client.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.remote = "://" in self.url
        if self.remote and not self.url.startswith(("s3://", "memory://")):
            raise UserError(f"store {url!r}: give a local folder or s3://bucket/prefix")

    # --- the hierarchy -----------------------------------------------------------------------

    @property
    def store(self) -> StoreLike:
        """The Zarr store of the run's group."""
        if self.remote:
            options = _S3_OPTIONS if self.url.startswith("s3://") else {}
            return FsspecStore.from_url(self.url, storage_options={**options, "asynchronous": True})
        return LocalStore(self.url)

    @property
    def exists(self) -> bool:
        """A run has been laid out here, wholly: study.json is written last."""
        files = self._files()
        return files.exists(self._path("study.json"))

    def require_writable(self) -> None:
        """Find out, before anything costs time, whether this place can be written to.

        Raises:
            UserError: it cannot; nothing is left behind either way.
        """
        try:
            if self.remote:
                probe = self._path("writable")
                self._files().pipe_file(probe, b"")
                self._files().rm_file(probe)
                return
            place = Path(self.url).absolute()
            while not place.exists():
                place = place.parent
            if not place.is_dir() or not os.access(place, os.W_OK):
                raise PermissionError(place)
        except Exception as error:  # whatever the object store's client raises
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> UserError:
        return UserError(
            f"store {self.url!r} cannot be written to ({type(error).__name__}): choose another "
            "place with --store, or mend its permissions or credentials"
        )

    def create(
        self,
        study: Study,
        samples: list[Sample],
        shapes: dict[str, LayerShape],
        size: int,
        timesteps: list[float],
        classes: tuple[str, ...],
        units: dict[str, str],
        record: dict[str, Any],
    ) -> None:
        """Lay the run out: every array with its dimensions, coordinates and units, no data yet.

        Args:
            size: height and width of the images in pixels.
            classes: names of the classes, empty where none are labeled.
            units: of each labeled property.
            record: versions, fingerprint and the like, kept with the run.

        Raises:
            UserError: the place cannot be written to.
        """
        try:
            root = zarr.create_group(
                self.store,
                overwrite=True,
                attributes={
                    "title": f"ldmprobe run of study {study.name}",
                    "study_hash": study.hash,
                    "description": "Activations, labels, probes and scores of a latent diffusion "
                    "model, by sampler step and denoiser layer.",
                    **record,
                },
            )
        except (OSError, PermissionError) as error:
            raise self._unwritable(error) from error
        layout = _Layout(root, study, samples, shapes, size, timesteps, classes, units)
        layout.build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # consolidation is an extension of v3
            zarr.consolidate_metadata(self.store)
        self.write_text("identity", uuid.uuid4().hex)
        self.write_text("study.json", study.to_json())

    def study(self) -> Study:
        """The study that the run carries out."""
        return parse_study(json.loads(self.read_text("study.json")), "study.json")

    def open(self, group: str) -> xr.Dataset:
        """One group, lazily; see the module's docstring for their names."""
        return xr.open_zarr(self.store, group=group, consolidated=False, chunks=None)

    def attributes(self) -> dict[str, Any]:
        """What was recorded when the run was created."""
        return dict(zarr.open_group(self.store, mode="r", use_consolidated=False).attrs)

    @property
    def layers(self) -> list[str]:
        """Captured layers, in the denoiser's order."""
        return [str(name) for name in self.open("marks").layer.values]

    # --- writing and reading regions -----------------------------------------------------------

    def write(self, group: str, values: dict[str, np.ndarray], **region: slice) -> None:
        """Write whole chunks of arrays of one group.

        Args:
            values: array name to data; along dimensions without a region the data is whole.
            region: dimension to slice.

        Raises:
            ValueError: a region does not begin and end on chunk borders, or the data's shape is
                not the region's.
        """
        node = zarr.open_group(self.store, path=group, mode="r+", use_consolidated=False)
        data = {}
        for name, value in values.items():
            array = node[name]
            assert isinstance(array, zarr.Array)
            dims = array.metadata.dimension_names  # type: ignore[union-attr]
            assert dims is not None
            _check_region(f"{group}/{name}", dims, array.shape, array.chunks, region, value.shape)
            data[name] = (dims, value)
        used = {d for dims, _ in data.values() for d in dims}
        xr.Dataset(data).to_zarr(
            self.store,
            group=group,
            region={dim: part for dim, part in region.items() if dim in used},
            consolidated=False,
            mode="r+",
            write_empty_chunks=True,
        )

    def read(self, group: str, name: str, **where: Any) -> np.ndarray:
        """Values of one array, `isel` by keyword."""
        return self.open(group)[name].isel(where).values

    # --- marks ---------------------------------------------------------------------------------

    def mark(self, name: str, *index: int) -> None:
        """Say that a unit of work is complete; call it after its data is written."""
        node = zarr.open_group(self.store, path="marks", mode="r+", use_consolidated=False)
        node[name][index] = 1  # type: ignore[index]

    def marks(self, name: str) -> np.ndarray:
        """Which units of a kind are complete, bool."""
        return self.read("marks", name).astype(bool)

    # --- records beside the arrays ---------------------------------------------------------------

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        files, path = self._files(), self._path(name)
        if self.remote:
            files.pipe_file(path, text.encode())
            return
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path + ".part", text.encode())
        files.mv(path + ".part", path)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a binary file of the run."""
        files, path = self._files(), self._path(name)
        if not self.remote:
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)

    def read_text(self, name: str) -> str:
        """A text file of the run.

        Raises:
            UserError: it is not there.
        """
        try:
            return self._files().cat_file(self._path(name)).decode()
        except FileNotFoundError:
            raise UserError(
                f"{self.url} holds no {name}: it is no run, or an unfinished one"
            ) from None

    def has(self, name: str) -> bool:
        """A file of the run exists."""
        return bool(self._files().exists(self._path(name)))

    def size(self) -> int:
        """Bytes that the run takes."""
        return int(self._files().du(self._path("")))

    def _files(self) -> Any:
        return fsspec.filesystem(
            self.url.partition("://")[0] if self.remote else "file",
            **(_S3_OPTIONS if self.url.startswith("s3://") else {}),
        )

    def _path(self, name: str) -> str:
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _check_region(
    name: str,
    dims: Iterable[str | None],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    region: dict[str, slice],
    given: tuple[int, ...],
) -> None:
    """Refuse what would lose data in silence: two writers in one chunk."""
    expected = []
    for dim, size, chunk in zip(dims, shape, chunks, strict=True):
        part = region.get(str(dim), slice(0, size))
        start, stop = part.start, part.stop
        if start % chunk or (stop % chunk and stop != size) or not 0 <= start < stop <= size:
            raise ValueError(
                f"{name}: region {dim} {start}..{stop} does not align with chunks of {chunk} "
                f"in 0..{size}"
            )
        expected.append(stop - start)
    if tuple(expected) != given:
        raise ValueError(f"{name}: data of shape {given} for a region of {tuple(expected)}")


class _Layout:
    """Creates every array of a run."""

    def __init__(
        self,
        root: zarr.Group,
        study: Study,
        samples: list[Sample],
        shapes: dict[str, LayerShape],
        size: int,
        timesteps: list[float],
        classes: tuple[str, ...],
        units: dict[str, str],
    ) -> None:
        self.root, self.study, self.samples, self.shapes = root, study, samples, shapes
        self.size, self.timesteps, self.classes, self.units = size, timesteps, classes, units
        self.batch = min(study.sampling.batch, len(samples))
        self.steps = len(timesteps)

    def build(self) -> None:
        """All groups; plain coordinates first, so that a stranger can read any group alone."""
        self._samples()
        self._images()
        for variant, group in (("real", "activations"), ("permuted", "permuted")):
            if variant == "real" or self.study.controls.permuted:
                for name, shape in self.shapes.items():
                    self._activations(f"{group}/{name}", name, shape)
        self._labels("labels", None)
        self._labels("labels_trajectory", "decoded latents after every step")
        self._labels("labels_clean", "the predicted clean image at every step")
        for name, shape in self.shapes.items():
            self._probes(f"probes/{name}", shape)
        for prop in self.study.labels.maps:
            self._scores(prop)
        self._marks()

    def _group(self, path: str, description: str) -> zarr.Group:
        return self.root.create_group(path, attributes={"description": description})

    def _array(
        self,
        group: zarr.Group,
        name: str,
        sizes: dict[str, int],
        chunks: dict[str, int],
        dtype: str,
        description: str,
        units: str = "1",
        compress: bool = True,
    ) -> None:
        floating = np.dtype(dtype).kind == "f"
        group.create_array(
            name,
            shape=tuple(sizes.values()),
            chunks=tuple(chunks.get(dim, size) for dim, size in sizes.items()),
            dtype=dtype,
            fill_value=np.nan if floating else 0,  # a hole in floats shows as NaN
            compressors=ZstdCodec(level=1) if compress else None,
            dimension_names=tuple(sizes),
            attributes={"description": description, "units": units},
            config={"write_empty_chunks": True},
        )

    def _table(
        self,
        group: zarr.Group,
        name: str,
        dim: str,
        values: Any,
        description: str,
        units: str = "1",
    ) -> None:
        """A small array with its data, one chunk."""
        data = np.asarray(values)
        text = data.dtype.kind == "U"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # string dtypes are an extension of Zarr v3
            array = group.create_array(
                name,
                shape=data.shape,
                chunks=data.shape,
                dtype=str if text else data.dtype,
                dimension_names=(dim,),
                attributes={"description": description, "units": units},
            )
            array[:] = data.astype(object) if text else data

    def _coordinate(
        self,
        group: zarr.Group,
        dim: str,
        values: Any,
        description: str,
        units: str = "1",
        name: str | None = None,
    ) -> None:
        """A coordinate of a dimension; one with a ``name`` of its own is a second one beside it."""
        self._table(group, name or dim, dim, values, description, units)
        if name:
            known = str(group.attrs.get("coordinates", "")).split()
            group.attrs["coordinates"] = " ".join([*known, name])

    def _sample(self, group: zarr.Group) -> None:
        self._coordinate(group, "sample", [s.index for s in self.samples], "index of the image")

    def _step(self, group: zarr.Group) -> None:
        self._coordinate(group, "step", range(1, self.steps + 1), "sampler step, from 1")
        self._coordinate(
            group,
            "step",
            self.timesteps,
            "the scheduler's own number of the step",
            name="timestep",
        )

    def _pixels(self, group: zarr.Group, y: int | None = None, x: int | None = None) -> None:
        for dim, count in (("y", y or self.size), ("x", x or self.size)):
            centers = (np.arange(count) + 0.5) * self.size / count
            self._coordinate(group, dim, centers, "centre, from the image's top left", "pixel")

    def _samples(self) -> None:
        group = self._group("samples", "Who was generated.")
        self._sample(group)
        for name, description in (
            ("prompt", "text the image was generated from"),
            ("category", "class that the prompt names; empty where unknown"),
            ("split", "which part the sample belongs to: " + ", ".join(SPLITS)),
        ):
            values = [getattr(s, name) or "" for s in self.samples]
            self._table(group, name, "sample", values, description)
        seeds = [s.seed for s in self.samples]
        self._table(group, "seed", "sample", seeds, "seed of the sample's own generator")

    def _images(self) -> None:
        group = self._group("images", "Finished images and what each step looked like.")
        self._sample(group)
        self._step(group)
        self._pixels(group)
        self._coordinate(group, "rgb", ["red", "green", "blue"], "colour channel")
        n, pixels = len(self.samples), {"y": self.size, "x": self.size, "rgb": 3}
        self._array(
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
            self._array(
                group,
                name,
                {"sample": n, "step": self.steps, **pixels},
                {"sample": self.batch, "step": 1},
                "uint8",
                description,
                "0..255",
            )

    def _activations(self, path: str, name: str, shape: LayerShape) -> None:
        group = self._group(path, f"Output of {name}, conditional half.")
        self._sample(group)
        self._step(group)
        self._pixels(group, shape.y, shape.x)
        self._coordinate(group, "channel", range(shape.channels), "channel of the layer")
        cells = {"sample": len(self.samples), "step": self.steps}
        chunk = {"sample": self.batch, "step": 1}
        grid = {"y": shape.y, "x": shape.x, "channel": shape.channels}
        # Activations hardly compress: zstd gains 6..12%, less than it costs in time.
        self._array(
            group,
            "activation",
            {**cells, **grid},
            chunk,
            "float16",
            f"output of {name}",
            compress=False,
        )
        self._array(
            group,
            "nonfinite",
            cells,
            {"sample": self.batch},
            "int32",
            "values that are not finite in float16",
        )

    def _labels(self, path: str, source: str | None) -> None:
        group = self._group(path, f"Labels of {source or 'the finished images'}.")
        self._sample(group)
        sizes = {"sample": len(self.samples)}
        chunks = {"sample": self.batch}
        if source:
            self._step(group)
            sizes["step"], chunks["step"] = self.steps, 1
        self._pixels(group)
        for prop in self.study.labels.maps:
            self._array(
                group,
                prop,
                {**sizes, "y": self.size, "x": self.size},
                chunks,
                "float16" if source else "float32",
                f"{prop} of {source or 'the finished image'}",
                self.units[prop],
            )
        if self.classes:
            self._coordinate(group, "class", list(self.classes), "class name")
            self._array(
                group,
                "class_score",
                {**sizes, "class": len(self.classes)},
                chunks,
                "float32",
                "probability of each class",
                self.units["class"],
            )

    def _probes(self, path: str, shape: LayerShape) -> None:
        group = self._group(path, "Linear probes: prediction = activation . weight + bias.")
        kinds, maps = self.study.probes.kinds, self.study.labels.maps
        self._coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self._coordinate(group, "property", list(maps), "what it reads")
        self._step(group)
        self._coordinate(group, "channel", range(shape.channels), "channel of the layer")
        sizes = {"kind": len(kinds), "property": len(maps), "step": self.steps}
        self._array(
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
        ):
            self._array(group, name, sizes, {"step": 1}, "float64", description)

    def _scores(self, prop: str) -> None:
        group = self._group(f"scores/{prop}", f"Scores of {prop} probes, held-out samples.")
        held = [s for s in self.samples if s.split != "train"]
        kinds, metrics = self.study.probes.kinds, METRICS[prop]
        self._coordinate(group, "variant", list(VARIANTS), "the probe proper, and its controls")
        self._coordinate(group, "kind", list(kinds), "how the probe was fitted")
        self._coordinate(group, "metric", list(metrics), "agreement with the label")
        self._step(group)
        self._coordinate(group, "layer", list(self.shapes), "denoiser module")
        self._coordinate(group, "sample", [s.index for s in held], "index of the image")
        self._coordinate(
            group, "sample", [s.split for s in held], "validation or test", name="split"
        )
        sizes = {
            "variant": len(VARIANTS),
            "kind": len(kinds),
            "metric": len(metrics),
            "step": self.steps,
            "layer": len(self.shapes),
            "sample": len(held),
        }
        self._array(
            group,
            "score",
            sizes,
            {"step": 1, "layer": 1},
            "float32",
            "score of one probe on one sample; NaN where undefined or not computed",
        )

    def _marks(self) -> None:
        group = self._group("marks", "Which units of work are complete (1).")
        batches = len(self.study.batches)
        self._coordinate(group, "batch", range(batches), "batch of samples")
        self._step(group)
        self._coordinate(group, "layer", list(self.shapes), "denoiser module")
        for name in ("generated", "labeled"):
            self._array(
                group,
                name,
                {"batch": batches},
                {"batch": 1},
                "uint8",
                f"batch is {name}",
                compress=False,
            )
        self._array(
            group,
            "probed",
            {"step": self.steps, "layer": len(self.shapes)},
            {"step": 1, "layer": 1},
            "uint8",
            "cell is probed",
            compress=False,
        )
