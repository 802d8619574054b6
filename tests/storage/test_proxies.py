"""Tests that requests to loopback addresses never go through a proxy."""

import os
import socket

import httpx
import pytest
from http_servers import http_server

from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.object_store import open_store

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in NAMES:
        for key in (name, name.lower()):
            monkeypatch.setenv(key, "")
            monkeypatch.delenv(key)


@pytest.mark.parametrize(
    "name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"]
)
def test_bypass_proxies_reaches_a_loopback_server(monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on this port
    bypass_proxies_for_loopback()
    with http_server(200, '"3.9.1"') as port:
        for host in _loopback_hosts():
            assert httpx.get(f"http://{host}:{port}/", timeout=20).status_code == 200


def _loopback_hosts() -> list[str]:
    """Names of this machine; a bare root without /etc/hosts does not know localhost."""
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "localhost"]


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
@pytest.mark.parametrize(
    "open_client",
    [lambda: Run("s3://bucket/run").location.client(), lambda: open_store("s3://bucket/run")],
    ids=["files", "chunks"],
)
def test_clients_of_a_store_bypass_proxies_on_loopback(monkeypatch, open_client, client):
    """A program that calls the Python API has not called the command line's `main`."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", f"proxies-{open_client}")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing listens on this port
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7")
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", client)
    open_client()
    assert os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "example.org"}, "example.org,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a, 127.0.0.1"}, "a,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_bypass_proxies_keeps_the_hosts_that_are_listed(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bypass_proxies_for_loopback()
    bypass_proxies_for_loopback()  # a second call changes nothing
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected
