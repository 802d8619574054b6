"""File operations on a local folder or on an S3 prefix, with the same interface and messages.

The clients that transfer the bytes are in `ldmprobe_core.storage.stores`.  Credentials and endpoint
of an object store come only from the environment or an AWS profile, as for any S3 client.  URLs and
studies do not contain them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ldmprobe_core.errors import LdmprobeError, RunError, UserError, without_logins
from ldmprobe_core.storage.stores.file_client import FileClient
from ldmprobe_core.storage.stores.fsspec_files import FsspecFiles
from ldmprobe_core.storage.stores.local_files import LocalFiles
from ldmprobe_core.storage.stores.object_files import ObjectFiles
from ldmprobe_core.storage.stores.regular_files import misplaced, require_writable_folder
from ldmprobe_core.storage.stores.s3_client import uses_obstore

M = TypeVar("M", bound=BaseModel)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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
            raise misplaced(url, error) from error
        raise


def normal_url(url: str) -> str:
    """Convert a store's address to an absolute folder, or to a URL without a trailing slash.

    Folders are made absolute because a worker that was started in another folder would resolve a
    relative path differently.

    Raises:
        UserError: the URL is empty or not printable, begins or ends with a space, begins with an
            unknown user or a variable, has an unknown protocol, names no bucket, or has a part that
            is empty, ``.``, ``..`` or not a key.
    """

    def address_error(problem: str) -> UserError:
        return UserError(
            f"store {without_logins(url)!r:.80}: {problem}. Fix: give a local folder or s3://bucket/prefix"
        )

    if not url.strip():
        raise address_error("the address is empty")
    if not url.isprintable():
        # Python decodes bytes of file names that are not UTF-8 to surrogates.
        undecoded = any("\udc80" <= character <= "\udcff" for character in url)
        raise address_error(
            "the address is not UTF-8" if undecoded else "the address has unprintable characters"
        )
    if url != url.strip():
        raise address_error("the address begins or ends with a space")
    protocol, separator, rest = url.partition("://")
    if not separator:
        if re.match("(s3|gs|gcs|az|abfss?|https?|file|memory):", url, re.IGNORECASE):
            raise address_error("two slashes must follow the protocol, as in s3://")
        sizes = [len(part.encode(errors="replace")) for part in url.split("/")]
        if sum(sizes) > 4096 or max(sizes) > 255:
            raise address_error("it is too long for a path")
        folder = os.path.expanduser(url)
        if folder.startswith("~"):
            raise address_error("the user after '~' is unknown")
        if re.match(r"\$\{?[A-Za-z_]", folder):
            # Only a shell replaces it: a deployment's parameter or a program's text stays as it is.
            raise address_error("it begins with a variable, which is not replaced")
        return "/" + os.path.abspath(folder).lstrip("/")
    if (protocol := protocol.lower()) != "s3":
        raise address_error(f"the protocol {protocol!r:.20} is not s3")
    parts = rest.rstrip("/").split("/")
    if any(part.strip() in ("", ".", "..") for part in parts):
        raise address_error("a part between slashes is empty, '.' or '..'")
    if unsafe := _UNSAFE.search(rest):
        raise address_error(f"the character {unsafe.group()!r} is not allowed in keys")
    if "@" in parts[0]:
        raise address_error("it holds a user name or password, which the environment must hold")
    if not _BUCKET.fullmatch(parts[0]):
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
        """Check that a bucket can be listed; local folders are not checked.

        Raises:
            UserError: the object store does not respond, has no such bucket, or refuses the
                credentials.
        """
        if not self.remote:
            return
        try:
            # A request for a single file would not tell a missing bucket from a missing file.
            try:
                self.client(patient=False).entries("")
            except FileNotFoundError:
                # s3fs raises it for a prefix without files as well as for a missing bucket.
                # Credentials that may list their prefix alone are refused the bucket's root, which
                # tells that the bucket is there.
                bucket = self.url.removeprefix("s3://").partition("/")[0]
                with suppress(PermissionError):
                    Location(f"s3://{bucket}").client(patient=False).entries("")
        except LdmprobeError:
            raise
        # S3 clients raise exceptions of many types if a store does not respond, so catch all.
        except Exception as error:
            raise UserError(
                f"store {self.url!r} cannot be reached ({_cause(error)}). Fix: check the "
                "bucket's name, the endpoint and the credentials (AWS_ENDPOINT_URL, "
                "AWS_ACCESS_KEY_ID, AWS_PROFILE, ...)"
            ) from error

    def require_writable(self) -> None:
        """Check that this location is writable; on an object store, write and remove a test file.

        Raises:
            UserError: the location is not writable.
        """
        if not self.remote:
            with explained_failures(self.url):
                require_writable_folder(self.url)
            return
        try:
            self.client().write("writable", b"")
            self.client().remove("writable")
        except LdmprobeError:
            raise
        # S3 clients raise exceptions of many types if a write is refused, so all are caught.
        except Exception as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: Exception) -> UserError:
        """Build the error to raise after a write to this location has failed."""
        return UserError(
            f"store {self.url!r} cannot be written to ({_cause(error)}). Fix: choose "
            "another store, or correct its permissions or credentials"
        )

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return self.client().exists(name)

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
            return self.client().read(name)
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
            self.client().write(name, data)

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files concurrently; after an interruption some may be missing.

        Raises:
            UserError: the disk is full, or read-only.
        """
        with explained_failures(self.url):
            self.client().write_many(files)

    def create(self, name: str, text: str) -> bool:
        """Create a file if it does not exist; return whether this call created it.

        If several processes call this at once, exactly one succeeds.  Local files are created by a
        hard link (see `LocalFiles.create`), and objects by a conditional PUT.

        Raises:
            UserError: the location is not writable, or its disk is full.
        """
        try:
            with explained_failures(self.url):
                created = self.client().create(name, text.encode())
        except OSError as error:
            raise self.unwritable(error) from error
        return created or (self.remote and self._is_ours(name, text))

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
            self.client().remove(name)

    def remove_folder(self, name: str = "") -> None:
        """Remove a folder and everything in it; links in it are removed, and not followed."""
        with explained_failures(self.url), suppress(FileNotFoundError):
            self.client().remove_folder(name)

    def files(self, name: str = "") -> list[str]:
        """List the names of the files in a folder, sorted; empty if there is no such folder."""
        return self._entries(name)[0]

    def folders(self, name: str) -> list[str]:
        """List the names of the subfolders of a folder, sorted; empty if the folder is missing."""
        return self._entries(name)[1]

    def modified(self, name: str) -> datetime:
        """Return when a file was last written, with a time zone, by the store's clock.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        return self.client().modified(name)

    def size(self) -> int:
        """Return the total size in bytes of all files at this location."""
        return self.client().size()

    def _entries(self, name: str) -> tuple[list[str], list[str]]:
        """List the names of the files and of the subfolders in a folder."""
        try:
            return self.client().entries(name)
        except (FileNotFoundError, NotADirectoryError):
            return [], []

    def client(self, patient: bool = True) -> FileClient:
        """Return the client that transfers the files of this location.

        Args:
            patient: True retries failed requests many times, False only once or twice.

        Raises:
            UserError: there are no credentials for the object store, or its client is unknown.
        """
        if not self.remote:
            return LocalFiles(self.url)
        return (ObjectFiles if uses_obstore(self.url) else FsspecFiles)(self.url, patient)

    def path(self, name: str) -> str:
        """Return the path of a file; in an object store, it begins with the bucket's name.

        An empty name gives the path of this location.
        """
        base = self.url.partition("://")[2] if self.remote else self.url
        return f"{base}/{name}" if name else base


def _cause(error: Exception) -> str:
    """Return the text of an object store's error, or the type name of any other error."""
    text, name = str(error), type(error).__name__
    return text if text.startswith("object store: ") else name
