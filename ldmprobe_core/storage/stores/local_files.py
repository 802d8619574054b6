"""Files in a local folder: whole writes, creation by hard links, and regular files only."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ldmprobe_core.storage.stores.regular_files import make_folder, require_regular

_NO_HARD_LINKS = (
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV,
    errno.EINVAL, errno.EACCES,
)  # fmt: skip
"""Error numbers from file systems without hard links, such as FAT and many FUSE mounts."""


class LocalFiles:
    """Client for the files in a local folder; see `FileClient`.

    Args:
        folder: absolute path, which need not exist before the first write.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        return os.path.exists(self._path(name))

    def read(self, name: str) -> bytes:
        """Read a regular file's bytes.

        Raises:
            FileNotFoundError: nothing is there.
            RunError: it is a folder or a pipe, or its permissions forbid to read it.
        """
        path = self._path(name)
        require_regular(path)
        return Path(path).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, by way of a temporary file."""
        path = self._path(name)
        # Two processes may write the same file at once, so the temporary file has a random name.
        part = f"{path}.{uuid.uuid4().hex}.part"
        for retries_left in (2, 1, 0):
            make_folder(path.rpartition("/")[0])
            try:
                Path(part).write_bytes(data)
                os.replace(part, path)
                return
            except FileNotFoundError:
                # Another process removed the folder, which was still empty, so try both again.
                if not retries_left:
                    raise
            except OSError:
                with suppress(OSError):
                    os.remove(part)
                raise

    def write_many(self, files: dict[str, bytes]) -> None:
        """Write several files one after the other, each of them not atomically."""
        for folder in {os.path.dirname(self._path(name)) for name in files}:
            make_folder(folder)
        for name, data in files.items():
            Path(self._path(name)).write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file by a hard link where the file system supports this.

        On a file system without hard links the file is first created empty and then replaced, so
        readers may see an empty file; it stays empty if this process ends in between.

        Returns:
            whether this call created the file.
        """
        path = self._path(name)
        self.write(part := f"{name}.{uuid.uuid4().hex}", data)
        try:
            # A hard link to a temporary file creates the file with its complete content, so readers
            # never see a part of it.
            os.link(self._path(part), path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return self._replace_empty(part, path)
        finally:
            with suppress(FileNotFoundError):
                self.remove(part)
        return True

    def _replace_empty(self, part: str, path: str) -> bool:
        """Create an empty file at ``path`` and move ``part`` over it; return False if it exists."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        os.replace(self._path(part), path)
        return True

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.remove(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and everything in it."""
        path = self._path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)

    def entries(self, name: str) -> tuple[list[str], list[str]]:
        """List the names of the files and of the subfolders in a folder, without links."""
        with os.scandir(self._path(name)) as listed:
            found = list(listed)
        return (
            sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False)),
            sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False)),
        )

    def modified(self, name: str) -> datetime:
        """Return when a file was last written."""
        return datetime.fromtimestamp(os.stat(self._path(name)).st_mtime, UTC)

    def size(self) -> int:
        """Return the total size in bytes of all files, without following links to folders."""
        walk = os.walk(self._folder)
        return sum(os.path.getsize(f"{top}/{name}") for top, _, names in walk for name in names)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if name else self._folder
