"""Checks of Prefect's settings, so that a wrong setting gives a clear message before any work."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from urllib.parse import urlsplit

from ldmprobe_core.errors import UserError


def check_prefect_settings() -> None:
    """Raise an error for Prefect settings that would make Prefect fail later.

    This function imports Prefect, which is slow, so call it only if Prefect is needed.

    Raises:
        UserError: PREFECT_HOME is not writable, PREFECT_API_URL is not a URL, or Prefect refuses
            another of its settings.
    """
    _require_writable(Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser())
    from pydantic import ValidationError

    try:
        # Hide the list of invalid settings that Prefect prints when it is imported, because the
        # message below replaces it.
        with redirect_stderr(io.StringIO()):
            from prefect.settings import PREFECT_API_URL

            url = PREFECT_API_URL.value()
    except ValidationError as error:
        problem = error.errors()[0]
        key = "_".join(str(part) for part in problem["loc"])
        raise UserError(
            f"Prefect's setting {key!r} is {problem['input']!r:.80}: {problem['msg']}. Fix: "
            "correct it in the environment (PREFECT_...), in .env, prefect.toml or the profile"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        # Prefect raises an error of these types if, for example, profiles.toml is malformed.
        raise UserError(
            f"Prefect's settings cannot be read ({type(error).__name__}: {error}). Fix: correct "
            "prefect.toml or the profiles.toml in PREFECT_HOME"
        ) from None
    _require_url(url)


def _require_writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UserError(
            f"PREFECT_HOME is {str(home)!r}, which cannot be written to ({error.strerror}). Fix: "
            "set PREFECT_HOME to a folder of your own"
        ) from None


def without_password(url: str) -> str:
    """Return a URL without its user name and password, so that messages can show it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _require_url(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f"PREFECT_API_URL is {without_password(url)!r}, which is not an http(s) URL. Fix: give "
            "a URL such as http://127.0.0.1:4200/api, or unset the variable"
        )
