"""Check whether the server at an address is a Prefect server that flows can run with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from ldmprobe_core.errors import UserError

_ANSWER_LIMIT_S = 10.0

Status = Literal["usable", "silent", "locked", "foreign", "incompatible"]


@dataclass(frozen=True)
class ServerCheck:
    """Verdict on a Prefect server: usable by flows, or a problem and its remedy.

    Attributes:
        status: ``usable`` if flows can run with the server.  Otherwise ``silent`` if it does not
            answer or is too busy to, ``locked`` if it refuses our credentials, ``foreign`` if it is
            not a Prefect server, or ``incompatible`` if it is a Prefect server of another major
            version.
        problem: description of the problem that follows the address in an error message, such as
            "is not a Prefect server's API"; empty if the server is usable.
        remedy: advice to the user as an imperative; empty if the server is usable.
    """

    status: Status
    problem: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """True if flows can run with this server."""
        return self.status == "usable"


def check_server(url: str, limit_s: float = _ANSWER_LIMIT_S) -> ServerCheck:
    """Check whether the server at a URL is a Prefect server that flows can run with.

    The check asks the server for its version, and uses the credentials and TLS settings of
    Prefect's client.  For Prefect Cloud it reads one flow run instead of the version.

    Args:
        url: URL of the API, such as ``http://127.0.0.1:4200/api``.
        limit_s: longest time to wait for an answer, in seconds.

    Raises:
        UserError: a proxy or a certificate file that an environment variable names cannot be used.
    """
    quick = {PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}
    cloud = url.startswith(PREFECT_CLOUD_API_URL.value())
    try:
        with temporary_settings(quick):
            client = get_client(sync_client=True, httpx_settings={"timeout": limit_s})
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # httpx sets up every configured proxy here, even if NO_PROXY exempts this server, so an
        # invalid proxy address raises this error.  The message of `InvalidURL` may quote a part of
        # a password.
        reason = "not a URL" if isinstance(error, httpx.InvalidURL) else _first_sentence(error)
        raise UserError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used ({reason}). Fix: "
            "give an http:// address, install httpx[socks] for a SOCKS proxy, or unset the variable"
        ) from None
    except OSError as error:
        raise UserError(
            "PREFECT_API_SSL_CERT_FILE or SSL_CERT_FILE: the certificates cannot be read "
            f"({error.strerror or error}). Fix: give a file of PEM certificates, or unset the "
            "variable"
        ) from None
    try:
        with temporary_settings(quick), client:
            if cloud:
                client.read_flow_runs(limit=1)
                return ServerCheck("usable")
            return _judge(client.api_version())
    except PrefectHTTPStatusError as error:
        return _refusal(error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return ServerCheck(
            "silent",
            f"does not answer ({type(error).__name__})",
            "start that server, correct the address, or unset it for one of the run's own",
        )
    except ValueError:
        # The server answered with something other than JSON, so it is not Prefect's API.
        return _FOREIGN


_FOREIGN = ServerCheck(
    "foreign",
    "is not a Prefect server's API",
    "give the address of the API, such as http://127.0.0.1:4200/api, or unset it",
)


def _judge(version: object) -> ServerCheck:
    """Judge a server usable if it has the major version of the installed Prefect client."""
    ours, theirs = _major(prefect.__version__), _major(version)
    if theirs is None:
        return _FOREIGN
    if theirs != ours:
        return ServerCheck(
            "incompatible",
            f"is a Prefect server of version {version}, and the client is {prefect.__version__}",
            f"use a server of version {ours}, or unset the address for one of the run's own",
        )
    return ServerCheck("usable")


def _major(version: object) -> int | None:
    """Return the major number of a version; None if the text is no version."""
    match = re.match(r"(\d+)\.\d+", version) if isinstance(version, str) else None
    return int(match[1]) if match else None


def _refusal(status: int) -> ServerCheck:
    """Return the verdict on a server that answers with an HTTP error status."""
    if status in (401, 403):
        return ServerCheck(
            "locked",
            f"is a Prefect server that refuses the credentials (HTTP status {status})",
            "set PREFECT_API_AUTH_STRING to user:password, or PREFECT_API_KEY on Prefect Cloud",
        )
    if is_passing_status(status):
        return ServerCheck(
            "silent",
            f"answers with HTTP status {status}",
            "look at that server's log, or repeat the command later",
        )
    return _FOREIGN


def is_passing_status(status: int) -> bool:
    """Return whether an HTTP error status tells of a busy or broken server, not of the request."""
    return status >= 500 or status in (408, 429)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an exception's message."""
    return str(error).partition(". ")[0].strip()
