"""A run's data: one Zarr v3 group in a folder or a bucket, written by region, read with xarray.

This module and `ldmprobe_core.storage.schema` alone know where things lie.  The whole hierarchy is
laid out when a run is created; workers then fill regions that are whole chunks, so that no two
writers ever share one.  A unit of work is either complete or absent: its mark is written after its
data.

Layout (dimensions in brackets)::

    samples/                   prompt, seed, category, split, source_image [sample]
    images/                    image [sample, y, x, rgb]; trajectory, clean [sample, step, ...]
    activations/<layer>/       activation [sample, step, y, x, channel]; nonfinite [sample, step]
    activations_permuted/<layer>/  the same, of the denoiser with permuted weights
    labels/                    foreground, depth, shading [sample, y, x]; class [sample, class]
    exact_maps/                   exact maps of pictures that have them [sample, y, x]
    labels_trajectory/         the same labelers on the decoded latents [sample, step, ...]
    labels_clean/              and on the predicted clean images [sample, step, ...]
    probes/<layer>/            weight [kind, property, step, channel]; bias, penalty [kind, ...]
    scores/<property>/         score [condition, kind, metric, step, layer, sample]
    statistics/<network>/<layer>/  sums over training samples: gram, nonfinite [accumulator,
                                   buffer, ...]
    statistics/labels/         foreground, depth, shading [accumulator, buffer, y, x]; count
    interventions/<name>/      image, label, score [condition, target, sample, ...]; target_map,
                                   unedited
    progress/                  generated, labeled [batch]; probed [step, layer]; accumulated
                                   [accumulator]

With ``capture.keep: statistics`` training samples leave nothing but those sums, and the dimension
``sample`` of all groups but samples/ holds the others, which then come first.
"""

from __future__ import annotations

import errno
import json
import uuid
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.checksum_store import ChecksumStore
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import Lease, hold_lease
from ldmprobe_core.storage.metadata_cache import cached_fact, invalidate_cache
from ldmprobe_core.storage.object_store import open_store
from ldmprobe_core.storage.progress import Progress
from ldmprobe_core.storage.schema import RunSchema, RunShape
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import map_properties
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study

SOURCES = ("trajectory", "clean")
"""What the image labelers read at each step: decoded latents, and the predicted clean image."""

_LAYING_OUT_S = 120.0
"""How long laying a run out may take another process; it takes seconds."""


class Run:
    """Handle of a run: its arrays, samples, study and progress, addressed by URL.

    Args:
        url: a local folder, or ``s3://bucket/prefix``; credentials and endpoint come from the
            environment, as for any S3 client.

    Attributes:
        location: the files of the run's folder or prefix.
        progress: which units of work are complete.
    """

    def __init__(self, url: str) -> None:
        self.location = Location(url)
        self.progress = Progress(self.location.url, lambda: self.store)

    def progress_of(self, group: str) -> Progress:
        """Progress record of units whose array lies in a group of its own, such as an edit's."""
        return Progress(self.url, lambda: self.store, group)

    @property
    def url(self) -> str:
        """Address of the run's folder or prefix."""
        return self.location.url

    # --- the hierarchy -----------------------------------------------------------------------

    @property
    def store(self) -> ChecksumStore:
        """The Zarr store of the run's group; chunks that were changed are refused."""
        return self.zarr_store(require_complete=False)

    def zarr_store(self, require_complete: bool) -> ChecksumStore:
        """The Zarr store of the run's group.

        Args:
            require_complete: refuse chunks that are missing, too.
        """
        return ChecksumStore(open_store(self.url), self.url, require_complete)

    @property
    def exists(self) -> bool:
        """A run has been laid out here, wholly: study.json is written last."""
        return self.location.has("study.json")

    def create(self, shape: RunShape, record: dict[str, Any]) -> None:
        """Lay the run out: every array with its dimensions, coordinates and units, no data yet.

        Args:
            record: versions, fingerprint and the like, kept with the run.

        Raises:
            UserError: the place cannot be written to.
        """
        study = shape.study
        laid_out: dict[
            str, Buffer
        ] = {}  # in memory first: array by array takes an object store long
        root = zarr.create_group(
            MemoryStore(laid_out),
            attributes={
                "title": f"ldmprobe run of study {study.name}",
                "study_hash": study.hash,
                "description": "Activations, labels, probes and scores of a latent diffusion "
                "model, by sampler step and denoiser layer.",
                **record,
            },
        )
        RunSchema(root, shape).build()
        _consolidate(root.store)
        invalidate_cache(self.url)
        try:
            self.location.remove_all()
            self.location.write_many({key: value.to_bytes() for key, value in laid_out.items()})
        except OSError as error:
            raise self.location.unwritable(error) from error
        self.location.write_text("identity", uuid.uuid4().hex)
        self.location.write_text("study.json", study.to_json())

    def creation_lock(self) -> AbstractContextManager[Lease]:
        """Lock for creating groups in the run; another process waits for it.

        Raises:
            UserError: another process has held the place for longer than laying out takes.
        """
        return hold_lease(f"{self.url}.laying-out", "another start", patience_s=_LAYING_OUT_S)

    def consolidate(self) -> None:
        """Gather the metadata of every group, so that one read shows a stranger all of them."""
        _consolidate(self.store)

    @cached_property
    def study(self) -> Study:
        """The study that the run carries out.

        Raises:
            UserError: there is none, or it is one of another release.
        """
        try:
            return parse_study(json.loads(self.location.read_text("study.json")), "study.json")
        except UserError as error:
            raise UserError(
                f"{self.url} was made by another release ({error}): read it with that release, or "
                "with xarray alone"
            ) from None

    def open(self, group: str, require_complete: bool = False) -> xr.Dataset:
        """One group, lazily; see the module's docstring for their names.

        Args:
            require_complete: nothing may be missing in what is read of it; else a hole reads as
                NaN or 0.
        """
        store = self.zarr_store(require_complete)
        return xr.open_zarr(store, group=group, consolidated=False, chunks=None, zarr_format=3)

    @cached_property
    def samples(self) -> list[Sample]:
        """Every sample of the run, in the order of their indices."""
        table = self.open("samples").load()
        columns = [
            table[name].values for name in ("prompt", "seed", "category", "split", "source_image")
        ]
        return [
            Sample(
                int(index), str(prompt), int(seed), str(category) or None, str(split),
                str(picture) or None,
            )
            for index, prompt, seed, category, split, picture in zip(
                table.sample.values, *columns, strict=True
            )
        ]  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        """What was recorded when the run was created."""
        return dict(
            zarr.open_group(self.store, mode="r", use_consolidated=False, zarr_format=3).attrs
        )

    @property
    def layers(self) -> list[str]:
        """Captured layers, in the denoiser's order."""
        return [name for name in self.probe_inputs if name != LATENTS]

    @property
    def probe_inputs(self) -> list[str]:
        """Everything that is probed: the layers, and the latents where they are a control."""
        return list(
            cached_fact(
                self.url, "layers", lambda: [str(n) for n in self.read("progress", "layer")]
            )
        )

    @property
    def n_stored(self) -> int:
        """How many samples have images and activations here: all, or those that do not train."""
        return int(cached_fact(self.url, "stored", lambda: self.open("images").sizes["sample"]))

    @property
    def exact_properties(self) -> list[str]:
        """Properties of which every picture has an exact map."""
        root = zarr.open_group(self.store, mode="r", use_consolidated=False, zarr_format=3)
        return [name for name in map_properties() if f"exact_maps/{name}" in root]

    # --- writing and reading regions -----------------------------------------------------------

    def write(self, group: str, values: dict[str, np.ndarray], **region: slice) -> None:
        """Write whole chunks of arrays of one group.

        Args:
            values: array name to data; along dimensions without a region the data is whole.
            region: dimension to slice.

        Raises:
            ValueError: a region does not begin and end on chunk borders, or the data's shape is
                not the region's.
            UserError: the disk is full.
        """
        node = zarr.open_group(
            self.store, path=group, mode="r+", use_consolidated=False, zarr_format=3
        )
        data = {}
        for name, value in values.items():
            array = node[name]
            assert isinstance(array, zarr.Array)
            dims = array.metadata.dimension_names  # type: ignore[union-attr]
            assert dims is not None
            _check_region(f"{group}/{name}", dims, array.shape, array.chunks, region, value.shape)
            data[name] = (dims, value)
        used = {d for dims, _ in data.values() for d in dims}
        try:
            xr.Dataset(data).to_zarr(
                self.store,
                group=group,
                region={dim: part for dim, part in region.items() if dim in used},
                consolidated=False,
                mode="r+",
                zarr_format=3,
                write_empty_chunks=True,
            )
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"store {self.url!r} is full: make room, then the same command goes on"
                ) from error
            raise

    def read(self, group: str, name: str, **where: Any) -> np.ndarray:
        """Values of one array, selected by dimension: an index, a slice, or an array of indices.

        The coordinates, which `open` reads too, are left alone.

        Raises:
            DamageError: some of them are not there, or are not what was written.
        """
        store = self.zarr_store(require_complete=True)
        array = zarr.open_array(store, path=f"{group}/{name}", mode="r", zarr_format=3)
        dims = array.metadata.dimension_names  # type: ignore[union-attr]
        assert dims is not None
        return np.asarray(array.oindex[tuple(where.get(str(dim), slice(None)) for dim in dims)])


def _consolidate(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an extension of v3; and our own records
        zarr.consolidate_metadata(store)


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
