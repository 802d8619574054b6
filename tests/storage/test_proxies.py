"""Tests that requests to loopback addresses never go through a proxy."""

import os

import httpx
import pytest
from http_servers import http_server

from flows.checks.loopback import bypass_proxies_for_loopback

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
        for host in ("127.0.0.1", "localhost"):
            assert httpx.get(f"http://{host}:{port}/", timeout=20).status_code == 200


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
