"""Check of the environment variables on which every flow depends."""

from __future__ import annotations

import os
import tempfile

from flows.checks.prefect_settings import check_prefect_settings
from ldmprobe_core.errors import UserError


def check_environment() -> None:
    """Check that temporary files can be written, and that Prefect accepts its settings.

    Raises:
        UserError: the folder in TMPDIR is not writable, or a setting of Prefect is unusable.
    """
    check_temporary_folder()
    check_prefect_settings()


def check_temporary_folder() -> None:
    """Check that the folder that the user named for temporary files is writable.

    Python would silently use another folder, whose disk may be too small.

    Raises:
        UserError: TMPDIR, TEMP or TMP names no writable folder, or no folder is writable.
    """
    names = [name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    if names:
        folder = os.environ[names[0]]
        try:
            with tempfile.TemporaryFile(dir=os.path.abspath(folder)):
                return
        except OSError as error:
            raise UserError(
                f"{names[0]}: temporary files cannot be written to this folder ({folder!r}: "
                f"{error.strerror}). Fix: give a writable folder, or unset the variable"
            ) from None
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(
            "TMPDIR: it is not set, and no usual folder for temporary files is writable (/tmp, "
            "/var/tmp). Fix: set it to a writable folder"
        ) from None
