"""Checks that the files of a local run are regular files, before anything reads them.

Reading a named pipe or a device would wait without end.  Folders and links that lead to themselves
have no content either.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from ldmprobe_core.errors import RunError, UserError


class NotRegularError(RunError):
    """Error for a folder, pipe, device or circular link at the path of a run's file."""


def require_regular(path: str) -> None:
    """Check that a path leads to a regular file that this user may read.

    Raises:
        FileNotFoundError: nothing is there.
        NotRegularError: there is something else than a regular file.
        RunError: the permissions of the file, or of a folder above it, do not allow reading it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if isinstance(error, PermissionError):
            raise RunError(
                f"{path}: the permissions of its folder do not allow reading it. Fix: correct them"
            ) from None
        if error.errno != errno.ELOOP:
            raise
        mode = stat.S_IFLNK
    if not stat.S_ISREG(mode):
        raise NotRegularError(
            f"{path}: it is {_kind(mode)}, not a regular file. Fix: put the file back from a copy, "
            "or remove it and use `ldmprobe verify --redo`"
        )
    if not os.access(path, os.R_OK):
        raise RunError(f"{path}: its permissions do not allow reading it. Fix: correct them")


def _kind(mode: int) -> str:
    """Name the type of a file, from its mode bits, for a message."""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a circular link" if stat.S_ISLNK(mode) else "a pipe, device or socket"


def misplaced(url: str, error: OSError) -> UserError:
    """Build the error for a path that is a folder but should be a file, or the reverse."""
    return UserError(
        f"store {url!r}: a folder is in the place of a file, or a file in that of a folder "
        f"({error.filename2 or error.filename}). Fix: move it away"
    )


def make_folder(path: str) -> None:
    """Create a folder and its parents; an existing folder is left as it is.

    Raises:
        NotADirectoryError: a file is in the place of the folder or of a parent.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise _not_a_folder(error.filename) from error


def require_writable_folder(path: str) -> None:
    """Check that a folder can be written to, or created below its nearest existing parent.

    Raises:
        NotADirectoryError: a file is in the place of the folder or of a parent.
        PermissionError: this user may not write there.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise _not_a_folder(str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(folder)


def _not_a_folder(path: str) -> NotADirectoryError:
    """Build the error for a file at a path that should be a folder."""
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def remove_irregular(path: str) -> bool:
    """Remove a pipe, link or empty folder where a file belongs; return False if this fails."""
    try:
        require_regular(path)
    except FileNotFoundError:
        return True
    except NotRegularError:
        pass
    else:
        return True
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.remove(path)
    except OSError:
        return False
    return True


class RegularFileStore(LocalStore):
    """Zarr store in a local folder that reads regular files only."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read the value of a key or a byte range of it; None if the key does not exist.

        Raises:
            NotRegularError: there is something else than a regular file.
            RunError: the file's permissions do not allow reading it.
        """
        try:
            require_regular(str(Path(self.root) / key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value under a key.

        Raises:
            NotADirectoryError: a file is in the place of a folder of the key.
        """
        make_folder(str((Path(self.root) / key).parent))
        await super().set(key, value)
