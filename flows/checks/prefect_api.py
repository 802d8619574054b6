"""Check of a Prefect server: whether it answers, is Prefect, admits us, and fits our version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import httpx
import prefect
from packaging.version import InvalidVersion, Version
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
    """Result of a check of a server.

    Attributes:
        status: ``usable``; ``silent``, it does not answer; ``locked``, it asks for other
            credentials; ``foreign``, it is not a Prefect server; ``incompatible``, it is a Prefect
            server of another major version.
        problem: the observation, as the predicate of a sentence about the address.
        remedy: correction, as an imperative.
    """

    status: Status
    problem: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Whether flows can run with this server."""
        return self.status == "usable"


def check_server(url: str, limit_s: float = _ANSWER_LIMIT_S) -> ServerCheck:
    """Ask a server for its version, with the credentials and TLS settings of Prefect's client.

    Args:
        url: of the API, such as ``http://127.0.0.1:4200/api``.
        limit_s: how long to wait for an answer.

    Raises:
        UserError: the proxies that the environment names cannot be used.
    """
    quick = {PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}
    cloud = url.startswith(PREFECT_CLOUD_API_URL.value())
    try:
        with temporary_settings(quick):
            client = get_client(sync_client=True, httpx_settings={"timeout": limit_s})
    except (ImportError, ValueError) as error:
        # httpx constructs every proxy at once, also for addresses that are exempt from proxies
        raise UserError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used ({_first_sentence(error)}). Fix: "
            "give an http:// address, install httpx[socks] for a SOCKS proxy, or unset it"
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
    except ValueError:  # the answer is not JSON
        return _FOREIGN


_FOREIGN = ServerCheck(
    "foreign",
    "is not a Prefect server's API",
    "give the address of the API, such as http://127.0.0.1:4200/api, or unset it",
)


def _judge(version: object) -> ServerCheck:
    """Compare a server's version with that of the client: the major versions must be equal."""
    ours = Version(prefect.__version__)
    try:
        theirs = Version(version) if isinstance(version, str) else None
    except InvalidVersion:
        theirs = None
    if theirs is None:
        return _FOREIGN
    if theirs.major != ours.major:
        return ServerCheck(
            "incompatible",
            f"is a Prefect server of version {theirs}, and the client is {ours}",
            f"use a server of version {ours.major}, or unset the address for one of the run's own",
        )
    return ServerCheck("usable")


def _refusal(status: int) -> ServerCheck:
    if status in (401, 403):
        return ServerCheck(
            "locked",
            f"is a Prefect server that refuses the credentials (HTTP status {status})",
            "set PREFECT_API_AUTH_STRING to user:password, or PREFECT_API_KEY on Prefect Cloud",
        )
    if status >= 500:
        return ServerCheck(
            "silent", f"answers with HTTP status {status}", "look at that server's log"
        )
    return _FOREIGN


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].strip()
