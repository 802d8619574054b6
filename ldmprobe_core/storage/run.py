"""Storage of a run as a Zarr v3 group in a folder or a bucket, readable with xarray.

All groups and arrays are created together with the run.  Workers then fill regions that consist of
whole chunks, so that two workers never write to the same chunk.  A unit of work is recorded in
``progress/`` after all of its data is written.  `ldmprobe_core.storage.schema` defines the layout.

Layout (dimensions in brackets)::

    samples/                   prompt, seed, category, split, source_image [sample]
    prompts/                   embedding [sample, feature]
    images/                    image [sample, y, x, rgb]
    step_images/               trajectory, clean [sample, step, y, x, rgb]
    activations/<layer>/       activation [sample, step, y, x, channel]; nonfinite [sample, step]
    activations_permuted/<layer>/  the same arrays for the denoiser with permuted weights
    labels/                    foreground, depth, shading [sample, y, x]; class [sample, class]
    exact_maps/                ground-truth maps of source images that have them [sample, y, x]
    labels_trajectory/         the same labelers on the decoded latents [sample, step, ...]
    labels_clean/              the same labelers on the predicted clean images [sample, step, ...]
    probes/<layer>/            weight [kind, property, step, channel]; bias, penalty, cut
                               [kind, property, step]; position [kind, property, step, y, x]
    scores/<property>/         score [condition, kind, metric, step, layer, sample];
                               shuffled_labels_draws [draw, step, layer, sample]
    statistics/<network>/<layer>/  sums over training samples: gram, by_position, nonfinite
                                   [accumulator, buffer, ...]
    statistics/labels/         foreground, depth, shading [accumulator, buffer, y, x]; count
    interventions/<name>/      image, label, score [condition, site, dose, target, ...]; target_map,
                                   unedited
    progress/                  generated, labeled [batch]; probed [step, layer]; accumulated
                                   [accumulator]

With ``capture.keep: statistics``, training samples contribute only to the sums in statistics/.
Held-out samples then have the first indices, and they alone are stored along the dimension
``sample`` of every group except samples/.  The groups of step images, their labels and
activations_permuted/ hold fewer samples, which their coordinate ``sample`` lists.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.bookkeeping import ChunkRecord, lay_out, require_no_data
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import Lease, hold_lease
from ldmprobe_core.storage.nodes import (
    checked_attributes,
    consolidated_metadata,
    dimensions,
    explained_metadata,
    metadata_error,
    open_array,
    open_group,
    read_selection,
)
from ldmprobe_core.storage.probe_schema import RunShape
from ldmprobe_core.storage.progress import Progress
from ldmprobe_core.storage.schema import RunSchema
from ldmprobe_core.storage.stores.checksum_store import ChecksumStore, RequiredChunks
from ldmprobe_core.storage.stores.metadata_cache import cached_fact, invalidate_cache
from ldmprobe_core.storage.stores.object_store import open_store, require_asserts
from ldmprobe_core.study.layers import INPUT_CONTROLS
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study

SOURCES = ("trajectory", "clean")
"""Names of the two images of each step that are labeled.

They are the decoded latents after the step, and the decoded clean latents predicted at it.
"""

_LAYING_OUT_S = 120.0
"""Longest time in seconds to wait while another process creates the same run."""


class Run:
    """Handle of one stored run, with its arrays, samples, study and progress.

    Args:
        url: a local folder, or ``s3://bucket/prefix``; credentials and endpoint come from the
            environment, as for any S3 client.

    Attributes:
        location: the files of the run's folder or prefix.
        progress: which units of work are complete.

    Raises:
        UserError: the URL is not an address of a store, or Python runs without assert statements.
    """

    def __init__(self, url: str) -> None:
        require_asserts()
        self.location = Location(url)
        self._record = ChunkRecord(self.location)
        self.progress = Progress(self.location.url, lambda: self.store, self._record)

    def progress_of(self, group: str) -> Progress:
        """Return the progress record stored in another group, such as an intervention's."""
        return Progress(self.url, lambda: self.store, self._record, group)

    @property
    def url(self) -> str:
        """Address of the run's folder or prefix."""
        return self.location.url

    # --- groups and arrays -------------------------------------------------------------------

    @property
    def store(self) -> ChecksumStore:
        """Zarr store that verifies checksums; a missing chunk reads as the fill value."""
        return self.zarr_store(require_complete=False)

    def zarr_store(
        self, require_complete: RequiredChunks, recorded: Mapping[str, bytes] | None = None
    ) -> ChecksumStore:
        """Open the run's Zarr store, which raises an error for a chunk with a wrong checksum.

        Args:
            require_complete: chunks that have to exist, so that a missing one raises; any other
                missing chunk reads as the fill value.
            recorded: expected checksums by key; a chunk with another checksum raises too.
        """
        store = open_store(self.url)
        return ChecksumStore(store, self.url, require_complete, self._record, recorded)

    @property
    def exists(self) -> bool:
        """Flag that is True if study.json exists, which is written last when a run is created."""
        return self.location.has("study.json")

    def create(self, shape: RunShape, record: dict[str, Any]) -> None:
        """Create the run: all arrays, with dimensions and units, and the values of coordinates.

        Args:
            shape: sizes and coordinates of the arrays.
            record: attributes of the root group, such as versions and fingerprints.

        Files of an interrupted creation are replaced; all other files stay.

        Raises:
            UserError: the run's folder or prefix is not writable, or holds data of a run whose
                study.json is missing.
        """
        study = shape.study
        require_no_data(self.location)
        # On an object store, creating arrays one by one is slow.  All groups and arrays are
        # therefore built in memory first and then uploaded concurrently.
        buffers: dict[str, Buffer] = {}
        root = zarr.create_group(
            MemoryStore(buffers),
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
        files = {key: value.to_bytes() for key, value in buffers.items()}
        lay_out(self.location, files, study.to_json())

    def creation_lock(self) -> AbstractContextManager[Lease]:
        """Build the lock that makes other processes wait while groups of the run are created.

        Raises:
            UserError: another process has held the lock for longer than creating a run takes.
        """
        return hold_lease(f"{self.url}.laying-out", "another start", patience_s=_LAYING_OUT_S)

    def consolidate(self) -> None:
        """Write the metadata of all groups and arrays into the root's zarr.json.

        Raises:
            RunError: a group or array of the present consolidated metadata is missing.  The
                metadata is then not rewritten, because the missing node can be restored from it.
        """
        nodes = {path for path, _ in open_group(self.store, self.url).members(max_depth=None)}
        for path in sorted(consolidated_metadata(self.location).keys() - nodes):
            # Groups of an intervention may be missing, because its creation was interrupted.  The
            # next start of the intervention creates them again.
            if path.partition("/")[0] != "interventions":
                raise metadata_error(self.url, path)
        _consolidate(self.store)

    @cached_property
    def study(self) -> Study:
        """Study that the run carries out, read from its study.json.

        Raises:
            UserError: study.json does not exist, or another release wrote it.
            RunError: study.json is damaged, or belongs to another run.
        """
        text = self.location.read_bytes("study.json")
        try:
            study = parse_study(json.loads(text), "study.json")
        except (ValueError, RecursionError):
            raise RunError(
                f"{self.url}: study.json is truncated or not JSON. Fix: put back a copy of it, or "
                "remove summary.json and repeat `ldmprobe run` with the same study, which writes "
                "both files"
            ) from None
        except UserError as error:
            raise UserError(
                f"{self.url}: this process cannot read study.json ({error}). Fix: use a new "
                "process, with the release and the packages that made the run, or xarray alone"
            ) from None
        if study.hash != (recorded := self.attributes.get("study_hash")):
            raise RunError(
                f"{self.url}: study.json has the hash {study.hash}, but the run was created for "
                f"the hash {recorded}. Fix: put back the study.json with which the run was created"
            )
        return study

    def open(self, group: str, require_complete: RequiredChunks = True) -> xr.Dataset:
        """Open one group of the run, such as ``labels``, as a lazy xarray dataset.

        Args:
            require_complete: True raises for a missing chunk; False reads it as the fill value,
                NaN or 0, so that a run can be read before all units are complete; a function of a
                chunk's key decides for each chunk.

        Raises:
            RunError: the group's metadata is missing or unreadable.
            CorruptChunkError: a chunk is missing or its checksum is wrong; raised when values
                are read.
        """
        store = self.zarr_store(require_complete)
        with explained_metadata(self.url, group):
            data = xr.open_zarr(store, group=group, consolidated=False, chunks=None, zarr_format=3)
        # xarray leaves out arrays whose zarr.json is lost, without an error.  The dataset is
        # therefore compared with the list of arrays in the root's metadata.
        for path in self._laid_out():
            parent, _, name = path.rpartition("/")
            if parent == group and name not in data.variables:
                raise metadata_error(self.url, path)
        return data

    def _laid_out(self) -> list[str]:
        """Return the paths of all arrays of the run, from its consolidated metadata."""

        def read() -> list[str]:
            metadata = consolidated_metadata(self.location)
            return [path for path, entry in metadata.items() if entry["node_type"] == "array"]

        return list(cached_fact(self.url, "arrays", read))

    @cached_property
    def samples(self) -> list[Sample]:
        """Samples of the run, in the order of their indices."""
        table = self.open("samples").load()
        columns = [
            table[name].values for name in ("prompt", "seed", "category", "split", "source_image")
        ]
        # Only runs of source images have the array ``source_digest``, a hash of each source image.
        digests = [""] * len(table.sample)
        if "source_digest" in table:
            digests = table.source_digest.values
        return [
            Sample(
                int(index), str(prompt), int(seed), str(category) or None, str(split),
                str(source_image) or None, source_digest=str(digest) or None,
            )
            for index, prompt, seed, category, split, source_image, digest in zip(
                table.sample.values, *columns, digests, strict=True
            )
        ]  # fmt: skip

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the root group, such as versions; `RunError` if one is damaged."""
        return checked_attributes(self.url, dict(open_group(self.store, self.url).attrs))

    @property
    def layers(self) -> list[str]:
        """Names of the captured layers, in the denoiser's order."""
        return [name for name in self.probe_inputs if name not in INPUT_CONTROLS]

    @property
    def probe_inputs(self) -> list[str]:
        """Names of the captured layers, then of the study's input controls, such as ``latents``."""
        return list(
            cached_fact(
                self.url, "layers", lambda: [str(n) for n in self.read("progress", "layer")]
            )
        )

    @property
    def n_stored(self) -> int:
        """Number of samples whose images and activations are stored.

        With ``capture.keep: statistics`` these are the held-out samples, otherwise all samples.
        """
        return int(cached_fact(self.url, "stored", lambda: self.open("images").sizes["sample"]))

    @property
    def has_prompt_embeddings(self) -> bool:
        """Flag that is True if the run stores prompt embeddings; not all models read prompts."""
        return "prompts" in open_group(self.store, self.url)

    @property
    def exact_properties(self) -> list[str]:
        """Names of the properties whose maps come from the user's files and not from a labeler."""
        root = open_group(self.store, self.url)
        return [name for name in self.study.map_properties if f"exact_maps/{name}" in root]

    # --- writing and reading regions -----------------------------------------------------------

    def write(self, group: str, values: dict[str, np.ndarray], **region: slice) -> None:
        """Write data to a region of arrays of one group; the region consists of whole chunks.

        Args:
            values: data by array name; it spans the full length of dimensions without a region.
            region: slice to write to, by dimension.

        Raises:
            ValueError: a region does not begin and end on chunk borders, or differs in shape from
                the data.
            UserError: the disk is full.
        """
        data = {}
        for name, value in values.items():
            array = open_array(self.store, self.url, f"{group}/{name}")
            dims = dimensions(array)
            _check_region(f"{group}/{name}", dims, array.shape, array.chunks, region, value.shape)
            data[name] = (dims, value)
        used = {d for dims, _ in data.values() for d in dims}
        xr.Dataset(data).to_zarr(
            self.store,
            group=group,
            region={dim: part for dim, part in region.items() if dim in used},
            consolidated=False,
            mode="r+",
            zarr_format=3,
            write_empty_chunks=True,
        )

    def read(self, group: str, name: str, **selection: Any) -> np.ndarray:
        """Read values of one array as NumPy, without the coordinates that `open` would read.

        Args:
            selection: by dimension, an index, a slice or an array of indices; other dimensions
                are read in full.

        Raises:
            RunError: the array's metadata is missing or unreadable.
            CorruptChunkError: a chunk is missing, or its checksum is wrong.
        """
        array = open_array(self.zarr_store(require_complete=True), self.url, f"{group}/{name}")
        index = tuple(selection.get(dim, slice(None)) for dim in dimensions(array))
        return read_selection(array, index, in_turn=not self.location.remote)


def _consolidate(store: Store) -> None:
    with warnings.catch_warnings():
        # Suppress Zarr's warnings that consolidated metadata is not in the v3 specification, and
        # that it does not recognize files such as study.json.
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(store)


def _check_region(
    name: str,
    dims: Iterable[str | None],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    region: dict[str, slice],
    data_shape: tuple[int, ...],
) -> None:
    """Check that a region consists of whole chunks, as two writers of one chunk could lose data."""
    expected = []
    for dim, size, chunk in zip(dims, shape, chunks, strict=True):
        span = region.get(str(dim), slice(0, size))
        start, stop = span.start, span.stop
        if start % chunk or (stop % chunk and stop != size) or not 0 <= start < stop <= size:
            raise ValueError(
                f"{name}: the region {start}..{stop} of dimension {dim} (size {size}) is not a "
                f"range of complete chunks ({chunk} elements each). Fix: begin and end the region "
                "at chunk boundaries"
            )
        expected.append(stop - start)
    if tuple(expected) != data_shape:
        raise ValueError(
            f"{name}: the data of shape {data_shape} do not fit a region of "
            f"{tuple(expected)}. Fix: pass data of the region's shape"
        )
