"""Conversion of download exceptions to error messages with a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ldmprobe_core.errors import LdmprobeError, RunError, UserError

_BAD_ADDRESS = ("UnsupportedProtocol", "InvalidURL")
"""Names of the exceptions of httpx for a URL that is none.

The hub's client may raise those of a version of httpx that is not this package's.
"""

_LOGIN = "log in (hf auth login, or HF_TOKEN), and repeat the command"


@contextmanager
def fetch_failures(field: str, origin: str) -> Iterator[None]:
    """Context manager that converts download exceptions to `UserError` or `RunError`.

    Args:
        field: key of the study that names what is fetched.
        origin: hub id or URL.

    Raises:
        UserError: the study, the login or the environment has a mistake, so that a repetition
            would fail in the same way.
        RunError: the download was not completed; a repetition continues with what is missing.
    """
    try:
        yield
    except LdmprobeError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"{field}: access to the repository needs consent to its licence ({origin!r}). Fix: "
            f"consent on its page of the hub, {_LOGIN}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{field}: the repository has no such branch, tag or commit ({origin!r}). Fix: correct "
            "the key revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{field}: the hub has no public repository of this name ({origin!r}). Fix: correct "
            f"the name, or, if it is private, {_LOGIN}"
        ) from error
    except (HfHubHTTPError, httpx.HTTPStatusError) as error:
        status = error.response.status_code
        if status in (401, 403) and isinstance(error, HfHubHTTPError):
            raise UserError(
                f"{field}: the hub refuses the login ({origin!r}, status {status}). Fix: {_LOGIN}"
            ) from error
        # A repetition would get the same answer, unless the server was too slow or too busy.
        if 400 <= status < 500 and status not in (408, 429):
            raise UserError(
                f"{field}: the server does not have this file, or does not give it ({origin!r}, "
                f"status {status}). Fix: correct the key or HF_ENDPOINT, or fetch the file by hand"
            ) from error
        raise _incomplete(field, origin, f"the server answered with status {status}") from error
    except OSError as error:
        raise _of_disk(field, origin, error) from error
    # A cut connection raises exceptions of many types, so all are caught.
    except Exception as error:
        if type(error).__name__ in _BAD_ADDRESS:
            raise UserError(
                f"{field}: the address of its server cannot be used ({origin!r}: "
                f"{_reason(error)}). Fix: correct HF_ENDPOINT (https://...), HTTP_PROXY or "
                "HTTPS_PROXY, or unset it"
            ) from error
        raise _incomplete(field, origin, _reason(error)) from error


def _of_disk(field: str, origin: str, error: OSError) -> LdmprobeError:
    """Build the error for a file that was not written, or for a connection that was lost."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{field}: the disk is full ({origin!r}). Fix: free space and repeat the command, "
            "or fetch into a folder on another disk; complete files are kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"{field}: the folder for its files cannot be written to ({origin!r}: "
            f"{error.strerror}, {error.filename}). Fix: correct its permissions, or choose "
            "another by --to, HF_HUB_CACHE or the study's key"
        )
    return _incomplete(field, origin, _reason(error))


def _incomplete(field: str, origin: str, reason: str) -> RunError:
    """Build the error for an incomplete download, whose remedy is to repeat the command."""
    return RunError(
        f"{field}: the download was not completed ({origin!r}: {reason}). Fix: repeat the command; "
        "complete files are kept"
    )


def _reason(error: Exception) -> str:
    """Return the type of an exception and the first line of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text:.120}" if text else type(error).__name__
