"""Checks of Prefect's settings, so that a wrong setting gives a clear message before any work."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ldmprobe_core.errors import UserError
from tasks.display import print_line

if TYPE_CHECKING:
    from pydantic import ValidationError


def check_prefect_settings() -> None:
    """Raise an error for Prefect settings that would make Prefect fail later.

    This function imports Prefect, which is slow, so call it only if Prefect is needed.  Settings
    that Prefect ignores are named in notes on standard error.

    Raises:
        UserError: PREFECT_HOME is not writable, PREFECT_API_URL is not a URL, the active profile
            does not exist, or Prefect refuses another of its settings.
    """
    home = _home()
    _require_writable(home)
    _require_settings_files(home)
    from pydantic import ValidationError

    try:
        # Hide the list of invalid settings that Prefect prints when it is imported, because the
        # message below replaces it.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(record=True) as caught:
            from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, load_profiles

            url, key, profiles = PREFECT_API_URL.value(), PREFECT_API_KEY.value(), load_profiles()
    except ValidationError as error:
        raise _refused_setting(error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # A malformed profiles.toml, for example, makes Prefect raise one of these exceptions.
        raise UserError(
            f"Prefect's settings cannot be read ({type(error).__name__}: {error}). Fix: correct "
            "prefect.toml or the profiles.toml in PREFECT_HOME"
        ) from None
    for warning in caught:
        if f"{os.sep}prefect{os.sep}settings{os.sep}" in warning.filename:
            print_line(f"note: Prefect's settings: {warning.message}")
    _require_profile(profiles.active_name, sorted(profiles.names))
    _require_url(url)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError(
            "PREFECT_API_KEY: it has a character that is not allowed in an HTTP header. Fix: copy "
            "the key again, or unset the variable"
        )


def _home() -> Path:
    """Return Prefect's home folder; raise `UserError` if its user is unknown."""
    text = os.path.expanduser(os.environ.get("PREFECT_HOME") or "~/.prefect")
    if text.startswith("~"):
        raise UserError(
            f"PREFECT_HOME: the home folder in it is unknown ({text!r}). Fix: give a full path"
        )
    return Path(text)


def _require_writable(home: Path) -> None:
    """Check that files can be created in Prefect's home folder."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UserError(
            f"PREFECT_HOME is {str(home)!r}, which cannot be written to ({error.strerror}). Fix: "
            "set PREFECT_HOME to a folder of your own"
        ) from None


def _require_settings_files(home: Path) -> None:
    """Check that the files in which Prefect looks for settings are regular files.

    Prefect would wait without end for the content of a pipe.
    """
    profiles = os.environ.get("PREFECT_PROFILES_PATH")
    if profiles and not os.path.exists(os.path.expanduser(profiles)):
        raise UserError(
            f"PREFECT_PROFILES_PATH: there is no such file ({profiles!r}). Fix: give the path of a "
            "profiles.toml, or unset the variable"
        )
    for path in (Path(profiles or home / "profiles.toml").expanduser(), Path("prefect.toml")):
        if path.exists() and not path.is_file():
            raise UserError(
                f"Prefect's settings: they must be in a regular file ({str(path)!r} is not). Fix: "
                "replace it by a TOML file, or remove it"
            )


def _refused_setting(error: ValidationError) -> UserError:
    """Build the error for a value that Prefect refuses, with the name of its variable if known."""
    problem = error.errors()[0]
    key = "_".join(str(part) for part in problem["loc"])
    variables = [
        name
        for name, value in os.environ.items()
        if name.startswith("PREFECT_") and name.lower().endswith(key) and value == problem["input"]
    ]
    name = variables[0] if variables else f"Prefect's setting {key!r} ({error.title})"
    return UserError(
        f"{name} is {problem['input']!r:.80}: {problem['msg']}. Fix: correct it in the environment "
        "(PREFECT_...), in .env, prefect.toml or the profile"
    )


def _require_profile(active: str | None, names: list[str]) -> None:
    """Check that the active profile exists; Prefect would silently use its default profile."""
    active = os.environ.get("PREFECT_PROFILE", active)
    if active not in names:
        variable = "PREFECT_PROFILE" if "PREFECT_PROFILE" in os.environ else "Prefect's profiles"
        raise UserError(
            f"{variable}: there is no profile of this name ({active!r}). Fix: give one of "
            f"{', '.join(map(repr, names))}, which `prefect profile ls` lists"
        )


def without_password(url: str) -> str:
    """Return a URL without its user name and password, so that messages can show it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _require_url(url: str | None) -> None:
    """Check that PREFECT_API_URL, if it is set, is an http(s) URL."""
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
