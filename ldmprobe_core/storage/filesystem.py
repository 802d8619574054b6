"""File operations that are the same in a local folder and below a prefix of a bucket.

Credentials and endpoint of an object store come only from the environment or an AWS profile, as for
any S3 client; URLs and studies do not contain them.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import BaseModel, ValidationError

from ldmprobe_core.errors import RunError, UserError

M = TypeVar("M", bound=BaseModel)

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
        # A stale listing would make chunks of other workers look missing.
        "use_listings_cache": False,
        "config_kwargs": _S3_CLIENT,
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    return options


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_NO_HARD_LINKS = (
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV,
    errno.EINVAL, errno.EACCES,
)  # fmt: skip
"""Errors of file systems that have no hard links, such as FAT, many FUSE mounts and some shares."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.IGNORECASE)

_UNSAFE = re.compile(r"[\\{}^%`\[\]\"<>~#|*?]")
"""Characters that the clients of object stores refuse, or take for patterns and queries."""


@contextmanager
def explained_failures(url: str) -> Iterator[None]:
    """Raise a full disk, a used-up quota or a read-only file system as one sentence.

    Raises:
        UserError: the disk is full, or nothing can be written to it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise UserError(
                f"store {url!r}: no space is left ({error.strerror}). Fix: free some, then repeat "
                "the command, which resumes the run"
            ) from error
        # The client of an object store raises a PermissionError without a number.
        if error.errno == errno.EROFS or isinstance(error, PermissionError):
            raise Location(url).unwritable(error) from error
        raise


def normal_url(url: str) -> str:
    """The one spelling of a store's address: an absolute folder, or a URL without a last slash.

    A relative folder would be another one to a worker that was started elsewhere.

    Raises:
        UserError: the URL is empty or not printable, begins or ends with a space, has an unknown
            protocol, names no bucket, or has a part that is empty, ``.``, ``..`` or not a key.
    """

    def refused(problem: str) -> UserError:
        return UserError(
            f"store {url!r:.80}: {problem}. Fix: give a local folder or s3://bucket/prefix"
        )

    if not url.strip() or not url.isprintable():
        raise refused("empty or with control characters")
    if url != url.strip():
        raise refused("a space at its beginning or end")
    protocol, separator, rest = url.partition("://")
    if not separator:
        if re.match("(s3|gs|gcs|az|abfss?|https?|file|memory):", url, re.IGNORECASE):
            raise refused("no two slashes follow its protocol")
        return "/" + os.path.abspath(os.path.expanduser(url)).lstrip("/")
    protocol = protocol.lower()
    if protocol not in ("s3", "memory"):
        raise refused("unknown protocol")
    parts = rest.rstrip("/").split("/")
    if any(part.strip() in ("", ".", "..") for part in parts):
        raise refused("a part of it is empty, '.' or '..'")
    if unsafe := _UNSAFE.search(rest):
        raise refused(f"{unsafe.group()!r} is not allowed in keys")
    if protocol == "s3" and not _BUCKET.fullmatch(parts[0]):
        raise refused(f"{parts[0]!r:.80} is not a bucket's name")
    return f"{protocol}://{'/'.join(parts)}"


class Location:
    """A folder, or ``s3://bucket/prefix``, and the files in it, named with forward slashes.

    Args:
        url: a local folder, or an address in a bucket; kept as `normal_url` spells it.

    Raises:
        UserError: the URL is not an address of a store; see `normal_url`.
    """

    def __init__(self, url: str) -> None:
        self.url = normal_url(url)
        self.remote = "://" in self.url

    # --- can it be used --------------------------------------------------------------------------

    def require_reachable(self) -> None:
        """Check that an object store responds; local folders are not checked.

        Raises:
            UserError: it does not respond, or it refuses the credentials.
        """
        if not self.remote:
            return
        try:
            self.filesystem(patient=False).info(self.path("study.json"))
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
                probe = self.path("writable")
                self.filesystem().pipe_file(probe, b"")
                self.filesystem().rm_file(probe)
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
        return bool(self.filesystem().exists(self.path(name)))

    def read_text(self, name: str) -> str:
        """Read a text file.

        Raises:
            UserError: it does not exist.
            RunError: it is not text in UTF-8.
        """
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError:
            raise RunError(
                f"{self.url}: {name} is not text, so it was damaged. Fix: put back a copy of it"
            ) from None

    def read_bytes(self, name: str) -> bytes:
        """Read a file.

        Raises:
            UserError: it does not exist.
        """
        try:
            return bytes(self.filesystem().cat_file(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.url} holds no {name}: it is not a run, or its run is unfinished. "
                "Fix: check the address, or finish the run"
            ) from None

    def read_record(self, name: str, model: type[M], remedy: str) -> M:
        """Read a JSON file as a record.

        Args:
            remedy: how the file is written again, for the message.

        Raises:
            UserError: it does not exist.
            RunError: it is not such a record.
        """
        try:
            return model.model_validate_json(self.read_bytes(name))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise RunError(
                f"{self.url}: {name} is unreadable ({first['msg']}). Fix: {remedy}"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically.

        Raises:
            UserError: the disk is full, or read-only.
        """
        with explained_failures(self.url):
            self._write_bytes(name, data)

    def _write_bytes(self, name: str, data: bytes) -> None:
        files, path = self.filesystem(), self.path(name)
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
        """Write files concurrently; not atomic, an interruption leaves some of them.

        Raises:
            UserError: the disk is full, or read-only.
        """
        with explained_failures(self.url):
            if not self.remote:
                for folder in {os.path.dirname(self.path(name)) for name in files}:
                    os.makedirs(folder, exist_ok=True)
            self.filesystem().pipe({self.path(name): data for name, data in files.items()})

    def create(self, name: str, text: str) -> bool:
        """Create a file if it does not exist; return whether this call created it.

        Atomic among concurrent callers: a hard link locally, a conditional PUT on an object store.
        On a file system without hard links the file is created empty, then replaced by the complete
        one; readers see it empty for a moment, and for good if this process ends just then.

        Raises:
            UserError: the location is not writable, or its disk is full.
        """
        try:
            with explained_failures(self.url):
                if self.remote:
                    self.filesystem().pipe_file(self.path(name), text.encode(), mode="create")
                else:
                    self._create_locally(name, text)
        except OSError as error:
            if not _is_taken(error):
                raise self.unwritable(error) from error
            return self.remote and self._is_ours(name, text)
        return True

    def _create_locally(self, name: str, text: str) -> None:
        """Create a local file.

        Raises:
            FileExistsError: it exists.
            OSError: the file cannot be written.
        """
        path = self.path(name)
        self.write_text(part := f"{name}.{uuid.uuid4().hex}", text)
        try:
            os.link(self.path(part), path)  # a complete file, so no reader gets a partial one
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.replace(self.path(part), path)
        finally:
            self.remove(part)

    def _is_ours(self, name: str, text: str) -> bool:
        """Whether the existing file is our own: a retry may be refused after a lost response."""
        try:
            return self.read_text(name) == text
        except UserError:
            return False

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with explained_failures(self.url), suppress(FileNotFoundError):
            self.filesystem().rm_file(self.path(name))

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly in a folder; empty if it does not exist."""
        return self._listed(name, "file")

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly in a folder; empty if it does not exist."""
        return self._listed(name, "directory")

    def size(self) -> int:
        """Total size of all files in bytes."""
        return int(self.filesystem().du(self.path("")))

    def _listed(self, name: str, kind: str) -> list[str]:
        try:
            entries = self.filesystem().ls(self.path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(path.rpartition("/")[2] for path in paths)

    def filesystem(self, patient: bool = True) -> Any:
        """The fsspec file system that holds the location.

        Args:
            patient: whether failed requests are retried often.
        """
        options = client_options(self.url)
        if options and not patient:
            options["config_kwargs"] = _IMPATIENT
        protocol = self.url.partition("://")[0] if self.remote else "file"
        return fsspec.filesystem(protocol, **options)

    def path(self, name: str) -> str:
        """Path of a file in `filesystem`; of the location itself if ``name`` is empty."""
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _is_taken(error: OSError) -> bool:
    """Whether the file existed already; s3fs puts S3's response into the cause of an OSError."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    precondition_failed = code in {"PreconditionFailed", "ConditionalRequestConflict"}
    return precondition_failed or isinstance(error, FileExistsError)
