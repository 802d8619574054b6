"""File operations on a local folder or on an S3 prefix, with the same interface.

Credentials and endpoint of an object store come only from the environment or an AWS profile, as for
any S3 client.  URLs and studies do not contain them.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import fsspec
from pydantic import BaseModel, ValidationError

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from ldmprobe_core.storage.stores import regular_files as local

M = TypeVar("M", bound=BaseModel)

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
    """Return fsspec options for an S3 client, without credentials; botocore finds these itself.

    fsspec caches clients by these options, so endpoint and certificates are among them.  Secrets
    are not, because options may be pickled and sent to workers.
    """
    if not url.startswith("s3://"):
        return {}
    bypass_proxies_for_loopback()
    options: dict[str, Any] = {
        # A cached listing would lack the chunks that other workers have written since.
        "use_listings_cache": False,
        "config_kwargs": _S3_CLIENT,
        "client_kwargs": {"verify": os.environ.get("AWS_CA_BUNDLE") or None},
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    return options


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_NO_HARD_LINKS = (
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV,
    errno.EINVAL, errno.EACCES,
)  # fmt: skip
"""Error numbers from file systems without hard links, such as FAT and many FUSE mounts."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.IGNORECASE)

_UNSAFE = re.compile(r"[\\{}^%`\[\]\"<>~#|*?]")
"""Characters that are not allowed in keys: S3 clients refuse or reinterpret them."""


@contextmanager
def explained_failures(url: str) -> Iterator[None]:
    """Turn errors of a full disk, an exceeded quota or a read-only store into a `UserError`.

    Raises:
        UserError: the disk is full, nothing can be written to it, or a folder is in the way.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise UserError(
                f"store {url!r}: no space is left ({error.strerror}). Fix: free some space, then "
                "repeat the command, which resumes the run"
            ) from error
        # S3 clients raise PermissionError without an errno, so the exception's type is tested too.
        if error.errno == errno.EROFS or isinstance(error, PermissionError):
            raise Location(url).unwritable(error) from error
        if isinstance(error, IsADirectoryError | NotADirectoryError):
            raise local.misplaced(url, error) from error
        raise


def normal_url(url: str) -> str:
    """Convert a store's address to an absolute folder, or to a URL without a trailing slash.

    Folders are made absolute because a worker that was started in another folder would resolve a
    relative path differently.

    Raises:
        UserError: the URL is empty or not printable, begins or ends with a space, has an unknown
            protocol, names no bucket, or has a part that is empty, ``.``, ``..`` or not a key.
    """

    def address_error(problem: str) -> UserError:
        return UserError(
            f"store {url!r:.80}: {problem}. Fix: give a local folder or s3://bucket/prefix"
        )

    if not url.strip() or not url.isprintable():
        raise address_error("the address is empty or has control characters")
    if url != url.strip():
        raise address_error("the address begins or ends with a space")
    protocol, separator, rest = url.partition("://")
    if not separator:
        if re.match("(s3|gs|gcs|az|abfss?|https?|file|memory):", url, re.IGNORECASE):
            raise address_error("two slashes must follow the protocol, as in s3://")
        sizes = [len(part.encode(errors="replace")) for part in url.split("/")]
        if sum(sizes) > 4096 or max(sizes) > 255:
            raise address_error("it is too long for a path")
        return "/" + os.path.abspath(os.path.expanduser(url)).lstrip("/")
    if (protocol := protocol.lower()) not in ("s3", "memory"):
        raise address_error(f"the protocol {protocol!r:.20} is not s3")
    parts = rest.rstrip("/").split("/")
    if any(part.strip() in ("", ".", "..") for part in parts):
        raise address_error("a part between slashes is empty, '.' or '..'")
    if unsafe := _UNSAFE.search(rest):
        raise address_error(f"the character {unsafe.group()!r} is not allowed in keys")
    if protocol == "s3" and not _BUCKET.fullmatch(parts[0]):
        raise address_error(f"{parts[0]!r:.80} is not a valid bucket name")
    return f"{protocol}://{'/'.join(parts)}"


class Location:
    """Access to the files in a folder or below an S3 prefix, by relative paths like ``a/b.json``.

    Args:
        url: a local folder, or an address in a bucket; `normal_url` normalizes it.

    Raises:
        UserError: the URL is not an address of a store; see `normal_url`.
    """

    def __init__(self, url: str) -> None:
        self.url = normal_url(url)
        self.remote = "://" in self.url

    def require_reachable(self) -> None:
        """Check that an object store responds; local folders are not checked.

        Raises:
            UserError: the object store does not respond, or refuses the credentials.
        """
        if not self.remote:
            return
        try:
            self.filesystem(patient=False).info(self.path("study.json"))
        except FileNotFoundError:
            return
        # S3 clients raise exceptions of many types if a store does not respond; all are caught.
        except Exception as error:
            raise UserError(
                f"store {self.url!r} cannot be reached ({type(error).__name__}). Fix: check its "
                "endpoint and credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...)"
            ) from error

    def require_writable(self) -> None:
        """Check that this location is writable; on an object store, write and remove a test file.

        Raises:
            UserError: the location is not writable.
        """
        if not self.remote:
            with explained_failures(self.url):
                local.require_writable_folder(self.url)
            return
        try:
            probe = self.path("writable")
            self.filesystem().pipe_file(probe, b"")
            self.filesystem().rm_file(probe)
        # S3 clients raise exceptions of many types if a write is refused, so all are caught.
        except Exception as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: Exception) -> UserError:
        """Build the error to raise after a write to this location has failed."""
        return UserError(
            f"store {self.url!r} cannot be written to ({type(error).__name__}). Fix: choose "
            "another store, or correct its permissions or credentials"
        )

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return bool(self.filesystem().exists(self.path(name)))

    def read_text(self, name: str) -> str:
        """Read a text file in UTF-8.

        Raises:
            UserError: the file does not exist.
            RunError: the file is not text in UTF-8.
        """
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError:
            raise RunError(
                f"{self.url}: {name} is damaged (it is not UTF-8 text). Fix: put back a copy of it"
            ) from None

    def read_bytes(self, name: str) -> bytes:
        """Read a file's bytes.

        Raises:
            UserError: the file does not exist.
            RunError: it is a folder or a pipe, or its permissions do not allow reading it.
        """
        try:
            if not self.remote:
                local.require_regular(self.path(name))
            return bytes(self.filesystem().cat_file(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.url} holds no {name}, so it is not a run, or the run is unfinished. "
                "Fix: check the address, or run the study again to finish it"
            ) from None

    def read_record(self, name: str, model: type[M], remedy: str) -> M:
        """Read a JSON file and validate it against the pydantic class ``model``.

        Args:
            remedy: advice on how to write the file again, for the error message.

        Raises:
            UserError: the file does not exist.
            RunError: the file is not a valid record of this type.
        """
        try:
            return model.model_validate_json(self.read_bytes(name))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problem = f"{self.url}: {name} is unreadable ({first['msg']})"
            raise RunError(f"{problem}. Fix: {remedy}") from None

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file atomically: readers see the old file or the new one."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see the old file or the new one.

        Raises:
            UserError: the disk is full, or read-only.
        """
        with explained_failures(self.url):
            self._write_bytes(name, data)

    def _write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically; errors are raised unchanged, for the caller to explain."""
        files, path = self.filesystem(), self.path(name)
        if self.remote:
            files.pipe_file(path, data)
            return
        # Two processes may write the same file at once, so the temporary file has a random name.
        part = f"{path}.{uuid.uuid4().hex}.part"
        for retries_left in (2, 1, 0):
            local.make_folder(path.rpartition("/")[0])
            try:
                files.pipe_file(part, data)
                os.replace(part, path)
                return
            except FileNotFoundError:
                # Another process removed the folder while it was empty: create it and write again.
                if not retries_left:
                    raise
            except OSError:
                with suppress(OSError):
                    os.remove(part)
                raise

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files concurrently; after an interruption some may be missing.

        Raises:
            UserError: the disk is full, or read-only.
        """
        with explained_failures(self.url):
            if not self.remote:
                for folder in {os.path.dirname(self.path(name)) for name in files}:
                    local.make_folder(folder)
            self.filesystem().pipe({self.path(name): data for name, data in files.items()})

    def create(self, name: str, text: str) -> bool:
        """Create a file if it does not exist; return whether this call created it.

        If several processes call this at once, exactly one succeeds.  Local files are created by a
        hard link, and objects by a conditional PUT.  On a file system without hard links the file
        is first created empty and then replaced, so readers may see an empty file; it stays empty
        if this process ends in between.

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
        """Create a local file, by a hard link where the file system supports this.

        Raises:
            FileExistsError: the file exists already.
            OSError: the file cannot be written.
        """
        path = self.path(name)
        self.write_text(part := f"{name}.{uuid.uuid4().hex}", text)
        try:
            # A hard link to a temporary file creates the file with its complete content, so readers
            # never see a part of it.
            os.link(self.path(part), path)
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
        """Return whether an existing file has the text that this process tried to write."""
        # If the response to a successful PUT is lost, the client repeats the PUT, which the store
        # then refuses although this process created the file.
        try:
            return self.read_text(name) == text
        except UserError:
            return False

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with explained_failures(self.url), suppress(FileNotFoundError):
            self.filesystem().rm_file(self.path(name))

    def files(self, name: str = "") -> list[str]:
        """List the names of the files in a folder, sorted; empty if there is no such folder."""
        return self._listed(name, "file")

    def folders(self, name: str) -> list[str]:
        """List the names of the subfolders of a folder, sorted; empty if the folder is missing."""
        return self._listed(name, "directory")

    def size(self) -> int:
        """Return the total size in bytes of all files at this location."""
        if self.remote:
            return int(self.filesystem().du(self.path("")))
        walk = os.walk(self.url)  # os.walk is ten times as fast as fsspec for many files
        return sum(os.path.getsize(f"{top}/{name}") for top, _, names in walk for name in names)

    def _listed(self, name: str, kind: str) -> list[str]:
        """List a folder's entries of one kind, ``file`` or ``directory``."""
        try:
            entries = self.filesystem().ls(self.path(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(path.rpartition("/")[2] for path in paths)

    def filesystem(self, patient: bool = True) -> Any:
        """Return the fsspec file system that contains this location.

        Args:
            patient: True retries failed requests many times, False only once or twice.
        """
        options = client_options(self.url)
        if options and not patient:
            options["config_kwargs"] = _IMPATIENT
        protocol = self.url.partition("://")[0] if self.remote else "file"
        return fsspec.filesystem(protocol, **options)

    def path(self, name: str) -> str:
        """Return a file's path in `filesystem`; an empty name gives the path of this location."""
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _is_taken(error: OSError) -> bool:
    """Return whether creating a file failed because the file exists already."""
    # s3fs raises a plain OSError; the error code of S3 is in the exception that caused it.
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    precondition_failed = code in {"PreconditionFailed", "ConditionalRequestConflict"}
    return precondition_failed or isinstance(error, FileExistsError)
