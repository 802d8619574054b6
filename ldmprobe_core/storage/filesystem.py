"""File operations that are the same in a local folder and below a prefix of a bucket.

Credentials and endpoint of an object store come only from the environment or an AWS profile, as for
any S3 client; URLs and studies do not contain them.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from ldmprobe_core.errors import UserError

_S3_CLIENT = {
    # Retry 500, 503 and cut connections with exponential backoff and jitter; then the unit of work
    # fails and is retried as a whole.
    "retries": {"mode": "standard", "max_attempts": 8},
    "connect_timeout": 10,
    "read_timeout": 60,
}

_IMPATIENT = {**_S3_CLIENT, "retries": {"mode": "standard", "max_attempts": 2}}
"""Fewer retries for the first request, so that a wrong endpoint is reported soon."""


def client_options(url: str) -> dict[str, Any]:
    """Options of an S3 client, in addition to those that it reads from the environment.

    fsspec caches clients by these options.  They include the endpoint, so that another endpoint in
    the same process gets another client, but no secrets, because options can be pickled.
    """
    if not url.startswith("s3://"):
        return {}
    options: dict[str, Any] = {
        "use_listings_cache": False,  # another worker's chunk must not read as a hole
        "config_kwargs": _S3_CLIENT,
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    return options


class Location:
    """A folder, or ``s3://bucket/prefix``, and the files in it, named with forward slashes.

    Args:
        url: a local folder, or an address in a bucket.

    Raises:
        UserError: the URL is empty, or has control characters or an unknown protocol.
    """

    def __init__(self, url: str) -> None:
        if not url.strip() or not url.isprintable():
            raise UserError(
                f"store {url!r:.80}: empty or with control characters. Fix: give a local folder "
                "or s3://bucket/prefix"
            )
        self.remote = "://" in url
        self.url = (url if self.remote else os.path.expanduser(url)).rstrip("/")
        if self.remote and not self.url.startswith(("s3://", "memory://")):
            raise UserError(
                f"store {url!r:.80}: unknown protocol. Fix: give a local folder or "
                "s3://bucket/prefix"
            )

    # --- can it be used --------------------------------------------------------------------------

    def require_reachable(self) -> None:
        """Check that an object store responds; local folders are not checked.

        Raises:
            UserError: it does not respond, or it refuses the credentials.
        """
        if not self.remote:
            return
        try:
            self._files(patient=False).info(self._path("study.json"))
        except FileNotFoundError:
            return
        except Exception as error:  # clients raise many types
            raise UserError(
                f"store {self.url!r} cannot be reached ({type(error).__name__}). Fix: check its "
                "endpoint and credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...)"
            ) from error

    def require_writable(self) -> None:
        """Check that this location is writable; nothing is left in it.

        Raises:
            UserError: it is not writable.
        """
        try:
            if self.remote:
                probe = self._path("writable")
                self._files().pipe_file(probe, b"")
                self._files().rm_file(probe)
                return
            folder = Path(self.url).absolute()
            while not folder.exists():
                folder = folder.parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise PermissionError(folder)
        except Exception as error:  # clients raise many types
            raise self.unwritable(error) from error

    def unwritable(self, error: Exception) -> UserError:
        """Error to raise after writing failed."""
        return UserError(
            f"store {self.url!r} cannot be written to ({type(error).__name__}). Fix: choose "
            "another store, or correct its permissions or credentials"
        )

    # --- files -----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return bool(self._files().exists(self._path(name)))

    def read_text(self, name: str) -> str:
        """Read a text file.

        Raises:
            UserError: it does not exist.
        """
        return self.read_bytes(name).decode()

    def read_bytes(self, name: str) -> bytes:
        """Read a file.

        Raises:
            UserError: it does not exist.
        """
        try:
            return bytes(self._files().cat_file(self._path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.url} holds no {name}: it is not a run, or its run is unfinished"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        files, path = self._files(), self._path(name)
        if self.remote:
            files.pipe_file(path, data)
            return
        part = f"{path}.{uuid.uuid4().hex}.part"  # unique among writers
        for retries_left in (2, 1, 0):
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                files.pipe_file(part, data)
                os.replace(part, path)
                return
            except FileNotFoundError:  # another process just removed the empty folder
                if not retries_left:
                    raise
            except OSError:
                with suppress(OSError):
                    os.remove(part)
                raise

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write files concurrently; not atomic, an interruption leaves some of them."""
        if not self.remote:
            for folder in {os.path.dirname(self._path(name)) for name in files}:
                os.makedirs(folder, exist_ok=True)
        self._files().pipe({self._path(name): data for name, data in files.items()})

    def create(self, name: str, text: str) -> bool:
        """Create a file if it does not exist; return whether this call created it.

        Atomic among concurrent callers: a hard link locally, a conditional PUT on an object store.

        Raises:
            UserError: the location is not writable.
        """
        path = self._path(name)
        try:
            if self.remote:
                self._files().pipe_file(path, text.encode(), mode="create")
            else:
                self.write_text(part := f"{name}.{uuid.uuid4().hex}", text)
                try:
                    os.link(
                        self._path(part), path
                    )  # links the complete file, so no reader gets a partial one
                finally:
                    self.remove(part)
        except OSError as error:
            if not _is_taken(error):
                raise self.unwritable(error) from error
            return self.remote and self._is_ours(name, text)
        return True

    def _is_ours(self, name: str, text: str) -> bool:
        """Whether the refused conditional PUT was ours: a retry after a lost response."""
        try:
            return self.read_text(name) == text
        except UserError:
            return False

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self._files().rm_file(self._path(name))

    def remove_all(self) -> None:
        """Remove the folder or prefix with everything in it, if it exists."""
        with suppress(FileNotFoundError):
            self._files().rm(self._path(""), recursive=True)

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly in a folder; empty if it does not exist."""
        return self._listed(name, "file")

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly in a folder; empty if it does not exist."""
        return self._listed(name, "directory")

    def size(self) -> int:
        """Total size of all files in bytes."""
        return int(self._files().du(self._path("")))

    def _listed(self, name: str, kind: str) -> list[str]:
        try:
            entries = self._files().ls(self._path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(path.rpartition("/")[2] for path in paths)

    def _files(self, patient: bool = True) -> Any:
        options = client_options(self.url)
        if options and not patient:
            options["config_kwargs"] = _IMPATIENT
        protocol = self.url.partition("://")[0] if self.remote else "file"
        return fsspec.filesystem(protocol, **options)

    def _path(self, name: str) -> str:
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _is_taken(error: OSError) -> bool:
    """Whether the file existed already; s3fs puts S3's response into the cause of an OSError."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    precondition_failed = code in {"PreconditionFailed", "ConditionalRequestConflict"}
    return precondition_failed or isinstance(error, FileExistsError)
