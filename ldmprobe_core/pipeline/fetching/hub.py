"""Download of a Hugging Face repository's files with the client library `huggingface_hub`."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import tqdm

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.pipeline.fetching.checksums import (
    convert_pickle,
    hash_file,
    record_of,
    require_checksum,
    write_record,
)
from ldmprobe_core.pipeline.fetching.failures import fetch_failures
from ldmprobe_core.pipeline.fetching.selection import select_files
from ldmprobe_core.study.readers.hub_cache import HubRepository, PublishedFile

_SAFETY_CHECKER = "safety_checker"
"""Component that a run leaves out, since it would replace some images by black ones."""

_FOLDER, _COMMIT = re.compile(r"\w+"), re.compile("[0-9a-f]{40,64}")
"""Patterns of the name of a pipeline's component, and of the hash of a commit."""

Advance = Callable[[int], None]
"""Callback that receives the number of bytes that were fetched since its last call."""


@dataclass(frozen=True)
class HubDownload:
    """Download of files of one repository commit into the Hugging Face cache.

    Attributes:
        field: key of the study that names the repository.
        repository: hub id and revision.
        commit: hash of the commit.
        listing: path within the repository to the hub's record of a file (size and checksum).
        conversions: path of a pickle within the repository to that of the safetensors file, within
            the repository's folder or absolute.
        beside: path of the JSON with checksums; None for one beside the repository's snapshots.
    """

    field: str
    repository: HubRepository
    commit: str
    listing: dict[str, Any]
    conversions: dict[str, str]
    beside: Path | None = None

    @property
    def size(self) -> int:
        """Number of bytes that are not in the cache yet."""
        return sum(int(self.listing[name].size or 0) for name in self.pending)

    @property
    def pending(self) -> list[str]:
        """Paths of the files that are neither in the cache nor converted to safetensors there."""
        return [
            name
            for name in self.listing
            if not self._is_here(self.conversions.get(name, name)) and not self._is_here(name)
        ]

    def _is_here(self, name: str) -> bool:
        """Return whether a file of the repository is in the cache, or is an existing local file."""
        path = try_to_load_from_cache(self.repository.name, name, revision=self.commit)
        return isinstance(path, str) or (Path(name).is_absolute() and Path(name).is_file())

    def run(self, advance: Advance) -> None:
        """Download missing files, verify all files, convert pickles, and write checksums.

        Raises:
            UserError, RunError: see `fetch_failures`.
        """
        name = self.repository.name
        files = [
            file
            for file in self.listing
            if file not in self.conversions or not self._is_here(self.conversions[file])
        ]
        with fetch_failures(self.field, name):
            folder = Path(
                snapshot_download(
                    name,
                    revision=self.repository.revision,
                    allow_patterns=[glob.escape(file) for file in files],
                    tqdm_class=_bar_class(advance),
                )
            )
            # The revision, and not the commit, is asked for, since the client then records in its
            # cache to which commit the branch points.  If the hub fails, the client returns the
            # commit that the cache has, whose files must not be compared with those of another.
            if folder.name != self.commit:
                raise RunError(
                    f"{self.field}: the hub announced commit {self.commit:.12}, but then gave or "
                    f"left {folder.name:.12} ({name!r}). Fix: repeat the command; what the cache "
                    "has is kept"
                )
            for file in files:
                self._verify(folder / file, self.listing[file])
            for file in files:
                if file in self.conversions:
                    convert_pickle(self.field, folder / file, folder / self.conversions[file])
            records = {}
            for file in self.listing:
                target = self.conversions.get(file)
                origin = {} if target is None else {"converted_from": file}
                records[target or file] = record_of(folder / (target or file), **origin)
            content = {"repository": name, "commit": self.commit, "files": records}
            beside = self.beside or folder.parents[1] / "checksums" / f"{self.commit}.json"
            write_record(beside, content)

    def _verify(self, path: Path, published: Any) -> None:
        """Compare a file's hash with the hub's: SHA-256 for Git LFS files, else the Git hash."""
        if published.lfs is not None:
            require_checksum(self.field, path, published.lfs.sha256, hash_file(path, "sha256"))
        elif published.blob_id is not None:
            prefix = b"blob %d\0" % path.stat().st_size
            actual = hash_file(path, "sha1", prefix)
            require_checksum(self.field, path, published.blob_id, actual)


def list_repository(field: str, repository: HubRepository) -> HubDownload:
    """List the files of a model or labeler in a hub repository that are to be fetched.

    Raises:
        UserError, RunError: see `fetch_failures`; or the repository has no weights.
    """
    with fetch_failures(field, repository.name):
        commit, listing = _list_files(repository)
        components = ["."]
        if "model_index.json" in listing:
            index = json.loads(
                Path(
                    hf_hub_download(repository.name, "model_index.json", revision=commit)
                ).read_text("utf-8")
            )
            # The names are part of paths on this machine, so only names of plain folders are used.
            components += [
                name for name in index if name != _SAFETY_CHECKER and _FOLDER.fullmatch(name)
            ]
        chosen = select_files(listing, components)
        if not chosen.weights and not chosen.pickles:
            raise UserError(
                f"{field}: the repository has no weights in the layout of diffusers or "
                f"transformers ({repository.name!r}). Fix: name a repository that has them"
            )
        names = [*chosen.configs, *chosen.weights, *chosen.pickles]
        return HubDownload(
            field, repository, commit, {name: listing[name] for name in names}, chosen.pickles
        )


def list_hub_file(field: str, file: PublishedFile) -> HubDownload:
    """Prepare the download of one pickled weight file from a hub repository.

    Raises:
        UserError, RunError: see `fetch_failures`; or the repository has no such file.
    """
    repository = HubRepository(file.origin)
    with fetch_failures(field, file.origin):
        commit, listing = _list_files(repository)
        if file.name not in listing:
            raise UserError(
                f"{field}: the repository has no file {file.name} ({file.origin!r}). Fix: fetch "
                "these weights by hand"
            )
    target = file.target.absolute()
    return HubDownload(
        field,
        repository,
        commit,
        {file.name: listing[file.name]},
        {file.name: str(target)},
        target.with_name(target.name + ".json"),
    )


def _list_files(repository: HubRepository) -> tuple[str, dict[str, Any]]:
    """Return a repository's commit hash, and the hub's records of its files by path.

    Raises:
        ValueError: the hub names something else as the commit, which would become part of a path.
    """
    info = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True)
    if _COMMIT.fullmatch(str(info.sha)) is None:
        raise ValueError(f"the hub names {info.sha!r:.60} as the commit")
    return str(info.sha), {file.rfilename: file for file in info.siblings or []}


def _bar_class(advance: Advance) -> type:
    """Return a progress bar class that draws nothing, and reports fetched bytes to `advance`.

    The client counts the same bytes on one bar or on two, so the bar that is ahead is followed.
    """
    total = 0

    class Bar(tqdm):
        """Invisible progress bar."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            """Add bytes to the count; the number is negative if the client starts a file again."""
            nonlocal total
            self.n += n or 0
            if self.counts_bytes and self.n > total:
                advance(int(self.n - total))
                total = self.n

    return Bar
