"""Interface of the clients for a run's files, in a local folder or in an object store."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class FileClient(Protocol):
    """Client for the files in one folder, or below one prefix of a bucket.

    Names are paths relative to it, such as ``a/b.json``; an empty name is the folder itself.

    Raises, from every method:
        PermissionError: the file system or the object store refuses the operation.
        OSError: the operation failed.
    """

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""

    def read(self, name: str) -> bytes:
        """Read a file's bytes.

        Raises:
            FileNotFoundError: the file does not exist.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see the old file or the new one."""

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files; after an interruption some may be missing or incomplete."""

    def create(self, name: str, data: bytes) -> bool:
        """Create a file if it does not exist, and return whether this call created it.

        If several processes call this at once, exactly one gets True.  The client of an object
        store may return False for a file that this call created, if the response was lost.
        """

    def remove(self, name: str) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: the file does not exist; object stores do not report this.
        """

    def remove_folder(self, name: str) -> None:
        """Remove a folder and everything in it; links in it are removed, and not followed."""

    def entries(self, name: str) -> tuple[list[str], list[str]]:
        """List the names of the files and of the subfolders in a folder, without links.

        Raises:
            FileNotFoundError: the folder does not exist; object stores return empty lists.
        """

    def modified(self, name: str) -> datetime:
        """Return when a file was last written, with a time zone.

        Raises:
            FileNotFoundError: the file does not exist.
        """

    def size(self) -> int:
        """Return the total size in bytes of all files."""
