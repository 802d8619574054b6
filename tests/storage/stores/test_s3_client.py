"""Calls of obstore: which failures are repeated, and what is said of the others."""

import os
import signal
import socket
import threading
import traceback

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError

from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.stores import s3_client
from ldmprobe_core.storage.stores.s3_client import retried, wait_for


def refusal(status: str, body: str = "") -> str:
    """Text of obstore 0.12 for a response that is not a success."""
    return (
        "Generic S3 error: Error performing PUT http://127.0.0.1:1/runs/x in 2ms - Server returned "
        f"non-2xx status code: {status}: {body}\n\nDebug source:\nGeneric {{\n    status: 0,\n}}"
    )


def broken(cause: str) -> str:
    """Text of obstore 0.12 for a request without a response."""
    return (
        "Generic S3 error: Error performing PUT http://127.0.0.1:1/runs/x in 2ms - HTTP error: "
        f"error sending request\n\nDebug source:\nGeneric {{\n    inner: Http({cause}),\n}}"
    )


UNTRUSTED = broken(
    "error: Custom {\n        error: InvalidCertificate(\n   UnknownIssuer,\n  ),\n}"
)
REFUSED = broken('Os {\n        code: 111,\n        message: "Connection refused",\n    }')
XML = '<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>m</Message></Error>'


def attempts(monkeypatch, error, succeeds_at=None, patient=True):
    """Return the number of attempts of a call, and its result or the error that it ends with."""
    monkeypatch.setattr(s3_client, "WAITS_S", (0.0, 0.0, 0.0))
    made = 0

    async def call():
        nonlocal made
        made += 1
        if made == succeeds_at:
            return "done"
        raise error

    try:
        result = wait_for(retried(call, patient))
    except Exception as raised:
        result = raised
    return made, result


def test_ctrl_c_ends_the_wait_for_a_silent_server(monkeypatch):
    """A synchronous call of obstore would not end before its time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

        def interrupt():
            silent.accept()  # the request has begun
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            Location("s3://bucket/run").has("study.json")


@pytest.mark.parametrize(
    "text", [refusal("500 Internal"), refusal("503 Slow", XML), refusal("429 Many"), REFUSED]
)
def test_calls_that_fail_for_the_moment_are_repeated(monkeypatch, text):
    assert attempts(monkeypatch, GenericError(text), succeeds_at=3) == (3, "done")
    count, error = attempts(monkeypatch, GenericError(text))
    assert count == 4
    assert type(error) is OSError
    assert attempts(monkeypatch, GenericError(text), patient=False)[0] == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GenericError(refusal("400 Bad Request")), OSError),
        (GenericError(refusal("501 Not Implemented").replace("501", "301")), OSError),
        (GenericError(UNTRUSTED), OSError),
        (PermissionDeniedError(refusal("403 Forbidden")), PermissionError),
        (AlreadyExistsError(refusal("412 Precondition Failed")), FileExistsError),
        (FileNotFoundError("Object at location x not found"), FileNotFoundError),
    ],
)
def test_calls_that_are_refused_are_not_repeated(monkeypatch, error, expected):
    count, raised = attempts(monkeypatch, error)
    assert (count, type(raised)) == (1, expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (refusal("503 Slow", XML), "Server returned non-2xx status code: 503 Slow (SlowDown)"),
        (refusal("400 Bad Request"), "Server returned non-2xx status code: 400 Bad Request"),
        (REFUSED, "HTTP error: error sending request (Connection refused)"),
        (UNTRUSTED, "HTTP error: error sending request (invalid certificate: UnknownIssuer)"),
    ],
)
def test_messages_are_one_line_with_the_cause(monkeypatch, text, said):
    _, error = attempts(monkeypatch, GenericError(text))
    where = "object store: Error performing PUT http://127.0.0.1:1/runs/x in 2ms"
    assert str(error) == f"{where} - {said}"


@pytest.mark.parametrize("kind", [GenericError, PermissionDeniedError])
def test_login_of_the_endpoint_is_in_no_message_or_traceback(monkeypatch, kind):
    text = refusal("403 Forbidden").replace("127.0.0.1", "admin:hidden@127.0.0.1")
    _, error = attempts(monkeypatch, kind(text))
    assert "PUT http://127.0.0.1:1/runs/x" in str(error)
    assert "hidden" not in "".join(traceback.format_exception(error))
