"""Conversion of download exceptions to error messages with a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ldmprobe_core.errors import LdmprobeError, RunError, UserError

_LOGIN = "log in (hf auth login, or HF_TOKEN), and repeat the command"


@contextmanager
def fetch_failures(field: str, origin: str) -> Iterator[None]:
    """Context manager that converts download exceptions to `UserError` or `RunError`.

    Args:
        field: key of the study that names what is fetched.
        origin: hub id or URL.

    Raises:
        UserError: the study or the login has a mistake.
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
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{field}: the hub refuses the login ({origin!r}, status {status}). Fix: {_LOGIN}"
            ) from error
        raise _incomplete(field, origin, f"the server answered with status {status}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{field}: the disk is full ({origin!r}). Fix: free space and repeat the command, "
                "or fetch into a folder on another disk; complete files are kept"
            ) from error
        raise _incomplete(field, origin, _reason(error)) from error
    # A cut connection raises exceptions of many types, so all are caught.
    except Exception as error:
        raise _incomplete(field, origin, _reason(error)) from error


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
