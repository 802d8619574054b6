"""Connections to object stores by obstore: keys, endpoint, certificates, retries and errors.

`obstore` is Python bindings of the Rust crate object_store.  It transfers all files and chunks of a
run in a bucket.  The environment variable ``LDMPROBE_S3_CLIENT=s3fs`` selects s3fs instead, for an
object store that obstore does not support.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import botocore.session
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from ldmprobe_core.errors import UserError, without_logins
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback

CLIENT = "LDMPROBE_S3_CLIENT"

T = TypeVar("T")

RETRIES: Any = {
    # obstore repeats a failed request, for about a second in all.  `retried` then repeats the call.
    "max_retries": 5,
    "retry_timeout": timedelta(minutes=1),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=20),
        "base": 2,
    },
}
"""Settings of obstore: number, duration and backoff of the retries of one request."""

_LONGEST_WAIT_S = 0.3

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Mean pauses in seconds between the attempts of one call; long enough for a server's restart."""


def uses_obstore(url: str) -> bool:
    """Return whether obstore is the client of a store, rather than s3fs.

    Raises:
        UserError: ``LDMPROBE_S3_CLIENT`` names an unknown client.
    """
    client = os.environ.get(CLIENT, "obstore")
    if client not in ("obstore", "s3fs"):
        raise UserError(
            f"{CLIENT}: unknown client ({client!r}). Fix: set {CLIENT} to obstore or s3fs, or "
            "unset it"
        )
    return client == "obstore" and url.startswith("s3://")


def connect(bucket: str, prefix: str = "", patient: bool = True) -> S3Store:
    """Return the connection to a bucket, or to the keys below a prefix of it.

    Connections are cached by the environment variables that choose keys and endpoint.

    Args:
        patient: True has failed requests repeated as `RETRIES` says, False only once, so that a
            wrong endpoint fails in seconds.

    Raises:
        UserError: there are no keys, or the file of certificates is unreadable.
    """
    identity = tuple(os.environ.get(f"AWS_{name}") for name in _SETTINGS)
    return _connection(bucket, prefix, patient, *identity)


_SETTINGS = (
    "ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "ACCESS_KEY_ID", "REGION", "DEFAULT_REGION",
    "CA_BUNDLE", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE",
)  # fmt: skip


@lru_cache(maxsize=64)
def _connection(bucket: str, prefix: str, patient: bool, *identity: str | None) -> S3Store:
    return S3Store(
        bucket,
        prefix=prefix or None,
        retry_config=RETRIES if patient else {**RETRIES, "max_retries": 1},
        **_arguments(*identity),
    )


@lru_cache(maxsize=8)
def _arguments(*_identity: str | None) -> dict[str, Any]:
    """Return the arguments of S3Store that botocore determines, which takes it 0.1 seconds."""
    bypass_proxies_for_loopback()
    session = botocore.session.get_session()
    credentials = BotocoreCredentials(session)
    # obstore reads the endpoint and region from the environment only, and no certificates.
    # botocore also reads the profile and the section `services` of the AWS config file, so its
    # values are passed to obstore.
    meta = session.create_client("s3", region_name=os.environ.get("AWS_REGION")).meta
    region = meta.region_name if meta.region_name not in (None, "aws-global") else "us-east-1"
    endpoint = None if ".amazonaws.com" in meta.endpoint_url else meta.endpoint_url
    client_options: dict[str, Any] = {
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "connect_timeout": "10s",
        "timeout": "120s",
    }
    if bundle := session.get_config_variable("ca_bundle"):
        client_options["root_certificate"] = _certificates(bundle)
    return {
        "region": region,
        "config": {"endpoint": endpoint} if endpoint else {},
        "client_options": client_options,
        "credential_provider": credentials,
    }


def _certificates(bundle: str) -> bytes:
    """Read the CA certificates (PEM) that may sign the certificate of the object store.

    Raises:
        UserError: the file cannot be read, or holds no certificate.
    """
    path = Path(bundle).expanduser()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        return path.read_bytes()
    except OSError as error:  # SSLError is one of them.
        raise UserError(
            f"AWS_CA_BUNDLE: the certificates cannot be read ({bundle}: {error.strerror}). Fix: "
            "name a file of certificates in PEM, or unset it"
        ) from None


class BotocoreCredentials:
    """Callable that gives obstore the credentials that botocore finds and refreshes."""

    def __init__(self, session: botocore.session.Session) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise UserError(
                "object store: no credentials. Fix: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        self._credentials = credentials

    def __call__(self) -> Any:
        """Return the current keys, as obstore's ``S3Credential``; obstore asks every 5 minutes."""
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }


async def retried(call: Callable[[], Awaitable[T]], patient: bool = True) -> T:
    """Await a call of obstore, which is repeated if it fails for the moment.

    obstore repeats a request that fails, but not one whose response is cut off; this function does.

    Args:
        patient: False makes only one attempt.

    Raises:
        FileNotFoundError: there is no object with this key.
        FileExistsError: the object that the call creates exists already.
        PermissionError: the credentials are refused.
        OSError: the call failed at every attempt, or in a way that another attempt would repeat.
    """
    for pause in _waits() if patient else (None,):
        try:
            return await call()
        except BaseError as error:
            if pause is None or not _may_pass(error):
                # Its text quotes the endpoint, whose login no traceback may show either.
                cause = type(error)(without_logins(str(error)))
                raise _os_error(cause) from cause
            await asyncio.sleep(pause)
    raise RuntimeError("unreachable: the last attempt returns or raises")


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that awaits obstore, without blocking signals.

    A synchronous call of obstore would ignore Ctrl-C until the request has ended or timed out.
    """
    future = asyncio.run_coroutine_threadsafe(work, _event_loop())
    try:
        # A signal that arrives just before a wait begins does not end it, so each wait is short.
        while not wait([future], _LONGEST_WAIT_S).done:
            pass
        return future.result()
    except BaseException:
        future.cancel()
        raise


_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""Event loop of this process's thread for obstore, by process id."""

_starting = threading.Lock()


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process's obstore thread; the first call starts the thread."""
    with _starting:
        if os.getpid() not in _loops:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="object store", daemon=True).start()
        return _loops[os.getpid()]


def _waits() -> Iterator[float | None]:
    """Yield the pauses between attempts in seconds, with jitter, then None for the last attempt."""
    for pause in WAITS_S:
        yield pause * random.uniform(0.5, 1.5)
    yield None


def _may_pass(error: BaseError) -> bool:
    """Return whether another attempt may succeed: not if the request itself is refused."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | AlreadyExistsError):
        return False
    text = str(error)
    if status := _STATUS.search(text):
        return int(status[1]) >= 500 or int(status[1]) in (408, 409, 429)
    return re.search(_CERTIFICATE, text) is None


_STATUS = re.compile(r"non-2xx status code: (\d{3})")


def _os_error(error: BaseError) -> OSError:
    """Convert an error of obstore to the built-in one that Zarr, Prefect and messages know."""
    message = f"object store: {_reason(str(error))}"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return PermissionError(message)
    return FileExistsError(message) if isinstance(error, AlreadyExistsError) else OSError(message)


def _reason(text: str) -> str:
    """Shorten the text of an obstore error to one line: what failed, and its innermost cause.

    The first line of the text is a sentence, which may end with an XML document from the server.
    The lines after it are the nested causes in Rust's debug format.
    """
    first = re.sub(r"<.*", "", text.partition("\n")[0]).removeprefix("Generic S3 error: ")
    first = first.rstrip(": ")
    causes = re.findall(r"<Code>(\w+)</Code>", text)[:1]
    if "HTTP error" in first:
        causes = re.findall(r'(?:message|error): "([^"\n]+)"', text)[-1:]
        causes += [f"invalid certificate: {c}" for c in re.findall(_CERTIFICATE, text)[:1]]
    return f"{first} ({', '.join(causes)})" if causes else first


_CERTIFICATE = r"InvalidCertificate\(\s*(\w+)"
