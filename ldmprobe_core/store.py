"""A run's data: one Zarr v3 group in a folder or a bucket, written by region, read with xarray.

This module and `ldmprobe_core.layout` alone know where things lie.  The whole hierarchy is laid out
when a run is created; workers then fill regions that are whole chunks, so that no two writers ever
share one.  A unit of work is either complete or absent: its mark is written after its data.

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
    interventions/<name>/      image, label, score [variant, target, sample, ...]; aim, unedited
    marks/                     generated, labeled [batch]; probed [step, layer]
"""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import xarray as xr
import zarr
from zarr.storage import FsspecStore, LocalStore, StoreLike

from ldmprobe_core.errors import UserError
from ldmprobe_core.layout import Blueprint, Layout
from ldmprobe_core.study import LATENTS, MAP_PROPERTIES, Study
from ldmprobe_core.study_file import parse_study

SOURCES = ("trajectory", "clean")
"""What the image labelers read at each step: decoded latents, and the predicted clean image."""

_CLAIM_STALE_S = 120.0
"""Laying a run out takes seconds, and nothing is loaded meanwhile: an older claim is nobody's."""


def _options(url: str) -> dict[str, Any]:
    """What an S3 client is told beside what it reads from the environment itself.

    fsspec keeps clients by these options: the endpoint is among them, so that a process that turns
    to another one does not go on talking to the first.  Secrets are not: options can be pickled.
    """
    if not url.startswith("s3://"):
        return {}
    options: dict[str, Any] = {
        "use_listings_cache": False  # another worker's chunk must not read as a hole
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    return options


class Run:
    """A study carried out, addressed by its URL.

    Args:
        url: a local folder, or ``s3://bucket/prefix``; credentials and endpoint come from the
            environment, as for any S3 client.
    """

    def __init__(self, url: str) -> None:
        self.remote = "://" in url
        self.url = (url if self.remote else os.path.expanduser(url)).rstrip("/")
        if self.remote and not self.url.startswith(("s3://", "memory://")):
            raise UserError(f"store {url!r}: give a local folder or s3://bucket/prefix")

    # --- the hierarchy -----------------------------------------------------------------------

    @property
    def store(self) -> StoreLike:
        """The Zarr store of the run's group."""
        if self.remote:
            options = _options(self.url)
            return FsspecStore.from_url(self.url, storage_options={**options, "asynchronous": True})
        return LocalStore(self.url)

    @property
    def exists(self) -> bool:
        """A run has been laid out here, wholly: study.json is written last."""
        files = self._files()
        return files.exists(self._path("study.json"))

    def require_reachable(self) -> None:
        """Find out whether an object store answers at all; local folders always do.

        Raises:
            UserError: it does not, or refuses the credentials.
        """
        if not self.remote:
            return
        try:
            self._files().info(self._path("study.json"))
        except FileNotFoundError:
            return
        except Exception as error:  # whatever the object store's client raises
            raise UserError(
                f"store {self.url!r} cannot be reached ({type(error).__name__}): check its "
                "endpoint and credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)"
            ) from error

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

    def create(self, blueprint: Blueprint, record: dict[str, Any]) -> None:
        """Lay the run out: every array with its dimensions, coordinates and units, no data yet.

        Args:
            record: versions, fingerprint and the like, kept with the run.

        Raises:
            UserError: the place cannot be written to.
        """
        study = blueprint.study
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
        Layout(root, blueprint).build()
        self.consolidate()
        self.write_text("identity", uuid.uuid4().hex)
        self.write_text("study.json", study.to_json())

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold this place while a run is laid out in it; whoever else claims it waits.

        The claim is a file beside the run, made only where none is (an object store's conditional
        put).  One whose owner died before the run was laid out is taken over when it is stale.

        Raises:
            UserError: another process has held the place for longer than laying out takes.
        """
        path, mine = self._path("").rstrip("/") + ".claim", uuid.uuid4().hex
        deadline = time.monotonic() + 2 * _CLAIM_STALE_S
        while not self._take(path, f"{mine} {time.time()}"):
            if time.monotonic() > deadline:
                raise UserError(
                    f"store {self.url!r} is being laid out by another process: wait for it, or "
                    f"remove {path} if there is none"
                )
            _, stamp = self._claimed_by(path)
            if time.time() - stamp > _CLAIM_STALE_S:
                with suppress(FileNotFoundError):
                    self._files().rm_file(path)
            time.sleep(0.2)
        try:
            yield
        finally:
            if self._claimed_by(path)[0] == mine:
                with suppress(FileNotFoundError):
                    self._files().rm_file(path)

    def _take(self, path: str, text: str) -> bool:
        """Make a file only where none is; says whether it did."""
        try:
            if self.remote:
                self._files().pipe_file(path, text.encode(), mode="create")
            else:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "x") as file:  # exclusive: the file system decides who is first
                    file.write(text)
        except OSError as error:
            if not _is_taken(error):
                raise self._unwritable(error) from error
            return False
        return True

    def _claimed_by(self, path: str) -> tuple[str, float]:
        """Whose a claim is, and since when; nobody's, and now, where it is just made or gone."""
        try:
            owner, stamp = self._files().cat_file(path).decode().split()
            return owner, float(stamp)
        except (FileNotFoundError, ValueError):
            return "", time.time()

    def consolidate(self) -> None:
        """Gather the metadata of every group, so that one read shows a stranger all of them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an extension of v3; and our own records
            zarr.consolidate_metadata(self.store)

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
        return [name for name in self.probed if name != LATENTS]

    @property
    def probed(self) -> list[str]:
        """Everything that is probed: the layers, and the latents where they are a control."""
        return [str(name) for name in self.open("marks").layer.values]

    @property
    def truth(self) -> list[str]:
        """Properties of which every picture has an exact map."""
        root = zarr.open_group(self.store, mode="r", use_consolidated=False)
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

    def done(self, name: str, *index: int) -> bool:
        """One unit of work is complete."""
        node = zarr.open_group(self.store, path="marks", mode="r", use_consolidated=False)
        return bool(node[name][index])  # type: ignore[index]

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
        part = f"{path}.{uuid.uuid4().hex}.part"  # another writer has its own
        files.pipe_file(part, text.encode())
        os.replace(part, path)

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
        return self.read_bytes(name).decode()

    def read_bytes(self, name: str) -> bytes:
        """A file of the run.

        Raises:
            UserError: it is not there.
        """
        try:
            return bytes(self._files().cat_file(self._path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.url} holds no {name}: it is no run, or an unfinished one"
            ) from None

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder of the run; none where it is not there."""
        path = self._path(name)
        try:
            found = self._files().ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        places = [item["name"].rstrip("/") for item in found if item["type"] == "directory"]
        return sorted(place.rpartition("/")[2] for place in places)

    def has(self, name: str) -> bool:
        """A file of the run exists."""
        return bool(self._files().exists(self._path(name)))

    def size(self) -> int:
        """Bytes that the run takes."""
        return int(self._files().du(self._path("")))

    def _files(self) -> Any:
        return fsspec.filesystem(
            self.url.partition("://")[0] if self.remote else "file",
            **_options(self.url),
        )

    def _path(self, name: str) -> str:
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _is_taken(error: OSError) -> bool:
    """The file was there already; s3fs gives S3's own answer as the cause of a plain OSError."""
    answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    taken = answer in {"PreconditionFailed", "ConditionalRequestConflict"}
    return taken or isinstance(error, FileExistsError)


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
