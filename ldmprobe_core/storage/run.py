"""A run's data: one Zarr v3 group in a folder or a bucket, written by region, read with xarray.

This module and `ldmprobe_core.storage.schema` alone know where things lie.  The whole hierarchy is
laid out when a run is created; workers then fill regions that are whole chunks, so that no two
writers ever share one.  A unit of work is either complete or absent: its mark is written after its
data.

Layout (dimensions in brackets)::

    samples/                   prompt, seed, category, split, picture [sample]
    images/                    image [sample, y, x, rgb]; trajectory, clean [sample, step, ...]
    activations/<layer>/       activation [sample, step, y, x, channel]; nonfinite [sample, step]
    permuted/<layer>/          the same, of the denoiser with permuted weights
    labels/                    foreground, depth, shading [sample, y, x]; class [sample, class]
    truth/                     exact maps of pictures that have them [sample, y, x]
    labels_trajectory/         the same labelers on the decoded latents [sample, step, ...]
    labels_clean/              and on the predicted clean images [sample, step, ...]
    probes/<layer>/            weight [kind, property, step, channel]; bias, penalty [kind, ...]
    scores/<property>/         score [variant, kind, metric, step, layer, sample]
    statistics/<variant>/<layer>/   sums over training samples: gram, nonfinite [part, slot, ...]
    statistics/labels/         foreground, depth, shading [part, slot, y, x]; count [part, slot]
    interventions/<name>/      image, label, score [variant, target, sample, ...]; aim, unedited
    marks/                     generated, labeled [batch]; probed [step, layer]; tallied [part]

With ``capture.store: statistics`` training samples leave nothing but those sums, and the dimension
``sample`` of all groups but samples/ holds the others, which then come first.
"""

from __future__ import annotations

import errno
import json
import uuid
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.checksum_store import CheckedStore
from ldmprobe_core.storage.filesystem import Place
from ldmprobe_core.storage.lease import Lease, leased
from ldmprobe_core.storage.metadata_cache import forget, known
from ldmprobe_core.storage.object_store import zarr_store
from ldmprobe_core.storage.schema import Blueprint, Layout
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import MAP_PROPERTIES
from ldmprobe_core.study.schema import Study

SOURCES = ("trajectory", "clean")
"""What the image labelers read at each step: decoded latents, and the predicted clean image."""

_LAYING_OUT_S = 120.0
"""How long laying a run out may take another process; it takes seconds."""


class Run(Place):
    """A study carried out, addressed by its URL.

    Args:
        url: a local folder, or ``s3://bucket/prefix``; credentials and endpoint come from the
            environment, as for any S3 client.
    """

    # --- the hierarchy -----------------------------------------------------------------------

    @property
    def store(self) -> CheckedStore:
        """The Zarr store of the run's group; chunks that were changed are refused."""
        return self.checked(whole=False)

    def checked(self, whole: bool) -> CheckedStore:
        """The Zarr store of the run's group.

        Args:
            whole: refuse chunks that are missing, too.
        """
        return CheckedStore(zarr_store(self.url), self.url, whole)

    @property
    def exists(self) -> bool:
        """A run has been laid out here, wholly: study.json is written last."""
        return self.has("study.json")

    def lay_out(self, blueprint: Blueprint, record: dict[str, Any]) -> None:
        """Lay the run out: every array with its dimensions, coordinates and units, no data yet.

        Args:
            record: versions, fingerprint and the like, kept with the run.

        Raises:
            UserError: the place cannot be written to.
        """
        study = blueprint.study
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
        Layout(root, blueprint).build()
        _consolidate(root.store)
        forget(self.url)
        try:
            self.remove_all()
            self.write_many({key: value.to_bytes() for key, value in laid_out.items()})
        except OSError as error:
            raise self.unwritable(error) from error
        self.write_text("identity", uuid.uuid4().hex)
        self.write_text("study.json", study.to_json())

    def claim(self) -> AbstractContextManager[Lease]:
        """Hold this place while something is laid out in it; whoever else claims it waits.

        Raises:
            UserError: another process has held the place for longer than laying out takes.
        """
        return leased(f"{self.url}.laying-out", "another start", patience_s=_LAYING_OUT_S)

    def consolidate(self) -> None:
        """Gather the metadata of every group, so that one read shows a stranger all of them."""
        _consolidate(self.store)

    def study(self) -> Study:
        """The study that the run carries out.

        Raises:
            UserError: there is none, or it is one of another release.
        """
        try:
            return _parsed(self.read_text("study.json"))
        except UserError as error:
            raise UserError(
                f"{self.url} was made by another release ({error}): read it with that release, or "
                "with xarray alone"
            ) from None

    def open(self, group: str, whole: bool = False) -> xr.Dataset:
        """One group, lazily; see the module's docstring for their names.

        Args:
            whole: nothing may be missing in what is read of it; else a hole reads as NaN or 0.
        """
        store = self.checked(whole)
        return xr.open_zarr(store, group=group, consolidated=False, chunks=None, zarr_format=3)

    def attributes(self) -> dict[str, Any]:
        """What was recorded when the run was created."""
        return dict(
            zarr.open_group(self.store, mode="r", use_consolidated=False, zarr_format=3).attrs
        )

    @property
    def layers(self) -> list[str]:
        """Captured layers, in the denoiser's order."""
        return [name for name in self.probed if name != LATENTS]

    @property
    def probed(self) -> list[str]:
        """Everything that is probed: the layers, and the latents where they are a control."""
        return list(
            known(self.url, "layers", lambda: [str(n) for n in self.read("marks", "layer")])
        )

    @property
    def stored(self) -> int:
        """How many samples have images and activations here: all, or those that do not train."""
        return int(known(self.url, "stored", lambda: self.open("images").sizes["sample"]))

    @property
    def truth(self) -> list[str]:
        """Properties of which every picture has an exact map."""
        root = zarr.open_group(self.store, mode="r", use_consolidated=False, zarr_format=3)
        return [name for name in MAP_PROPERTIES if f"truth/{name}" in root]

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
        store = self.checked(whole=True)
        array = zarr.open_array(store, path=f"{group}/{name}", mode="r", zarr_format=3)
        dims = array.metadata.dimension_names  # type: ignore[union-attr]
        assert dims is not None
        return np.asarray(array.oindex[tuple(where.get(str(dim), slice(None)) for dim in dims)])

    # --- marks ---------------------------------------------------------------------------------

    def mark(self, name: str, *index: int, count: int = 1) -> None:
        """Say that a unit of work is complete; call it after its data is written.

        Args:
            count: of units that are now complete there; 0 has all of them done again.
        """
        node = zarr.open_group(
            self.store, path="marks", mode="r+", use_consolidated=False, zarr_format=3
        )
        node[name][index] = count  # type: ignore[index]

    def count(self, name: str, *index: int) -> int:
        """How many units are complete at one place."""
        node = zarr.open_group(
            self.store, path="marks", mode="r", use_consolidated=False, zarr_format=3
        )
        return int(node[name][index])  # type: ignore[index,arg-type]

    def done(self, name: str, *index: int) -> bool:
        """One unit of work is complete."""
        return bool(self.count(name, *index))

    def require_all(self, name: str) -> None:
        """Refuse to go on from work that is not there.

        Raises:
            RuntimeError: a unit of this kind has no mark.
        """
        missing = np.argwhere(~self.marks(name))
        if len(missing):
            raise RuntimeError(
                f"{self.url}: {len(missing)} units are not {name} yet, the first being "
                f"{tuple(int(i) for i in missing[0])}"
            )

    def marks(self, name: str) -> np.ndarray:
        """Which units of a kind are complete, bool; of parts of sums, which have any that are."""
        return self.counts(name).astype(bool)

    def counts(self, name: str) -> np.ndarray:
        """How many units are complete at each place: 1 or 0, but for parts of sums."""
        return self.open("marks")[name].values  # no mark yet is no damage


@lru_cache(maxsize=8)
def _parsed(study: str) -> Study:
    return parse_study(json.loads(study), "study.json")


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
