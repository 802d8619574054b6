"""File client based on fsspec, for S3 by s3fs, the alternative to obstore."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import fsspec

from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback

_S3_CLIENT = {
    # botocore retries responses 500 and 503 and broken connections, with exponential backoff.
    # After the last attempt the unit of work fails, and its task is retried.
    "retries": {"mode": "standard", "max_attempts": 8},
    "connect_timeout": 10,
    "read_timeout": 60,
}

_IMPATIENT = {**_S3_CLIENT, "retries": {"mode": "standard", "max_attempts": 2}}
"""Settings of the first request, with few retries, so that a wrong endpoint fails in seconds."""


def client_options(url: str) -> dict[str, Any]:
    """Return fsspec options for an S3 client, without credentials, which botocore itself finds.

    fsspec caches clients by these options, so endpoint and certificates are among them.  Secrets
    are not, because options may be pickled and sent to workers.
    """
    if not url.startswith("s3://"):
        return {}
    bypass_proxies_for_loopback()
    options: dict[str, Any] = {
        # With a cached listing, chunks that other workers write later would seem missing.
        "use_listings_cache": False,
        "config_kwargs": _S3_CLIENT,
        "client_kwargs": {"verify": os.environ.get("AWS_CA_BUNDLE") or None},
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    return options


class FsspecFiles:
    """Implementation of `FileClient` that uses fsspec to access the files below a URL.

    Args:
        url: ``s3://bucket/prefix``.
        patient: whether failed requests are repeated many times, or only once or twice.

    Attributes:
        filesystem: fsspec's file system.
    """

    def __init__(self, url: str, patient: bool = True) -> None:
        protocol, _, self._base = url.partition("://")
        options = client_options(url)
        if options and not patient:
            options["config_kwargs"] = _IMPATIENT
        self.filesystem: Any = fsspec.filesystem(protocol, **options)

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return bool(self.filesystem.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """Read a file's bytes."""
        return bytes(self.filesystem.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self.filesystem.pipe_file(self._path(name), data)

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files concurrently."""
        self.filesystem.pipe({self._path(name): data for name, data in files.items()})

    def create(self, name: str, data: bytes) -> bool:
        """Create a file if it does not exist, and return whether this call created it."""
        try:
            self.filesystem.pipe_file(self._path(name), data, mode="create")
        except OSError as error:
            if not _is_taken(error):
                raise
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.filesystem.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and everything in it."""
        self.filesystem.rm(self._path(name), recursive=True)

    def entries(self, name: str) -> tuple[list[str], list[str]]:
        """List the names of the files and of the subfolders in a folder."""
        listed = self.filesystem.ls(self._path(name), detail=True)

        def names(kind: str) -> list[str]:
            paths = [entry["name"].rstrip("/") for entry in listed if entry["type"] == kind]
            return sorted(path.rpartition("/")[2] for path in paths)

        return names("file"), names("directory")

    def modified(self, name: str) -> datetime:
        """Return when a file was last written."""
        written: datetime = self.filesystem.modified(self._path(name))
        return written if written.tzinfo else written.replace(tzinfo=UTC)

    def size(self) -> int:
        """Return the total size in bytes of all files."""
        return int(self.filesystem.du(self._path("")))

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base


def _is_taken(error: OSError) -> bool:
    """Return whether creating a file failed because the file exists already."""
    # s3fs raises a plain OSError; the error code of S3 is in the exception that caused it.
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    precondition_failed = code in {"PreconditionFailed", "ConditionalRequestConflict"}
    return precondition_failed or isinstance(error, FileExistsError)
