"""Tests of the check that tells whether a server is a usable Prefect server."""

import json

import prefect
import pytest
from http_servers import http_server, silent_server
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    temporary_settings,
)

from flows.checks.prefect_api import check_server
from infra.stack import free_ports
from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback

MAJOR = int(prefect.__version__.split(".")[0])


@pytest.fixture(autouse=True)
def loopback():
    bypass_proxies_for_loopback()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, json.dumps(prefect.__version__), "usable"),
        (200, json.dumps(f"{MAJOR}.0.0"), "usable"),
        (200, json.dumps(f"{MAJOR - 1}.20.16"), "incompatible"),
        (200, json.dumps(f"{MAJOR + 1}.0.0rc1"), "incompatible"),
        (401, '{"exception_message": "Unauthorized"}', "locked"),
        (403, "{}", "locked"),
        (404, "{}", "foreign"),
        (200, "<html>a notebook</html>", "foreign"),
        (200, '"not a version"', "foreign"),
        (200, '{"version": "3.0"}', "foreign"),
        (500, "{}", "silent"),
        (503, "{}", "silent"),
        (429, "Too Many Requests", "silent"),
        (408, "{}", "silent"),
    ],
)
def test_check_server_by_its_answer(status, body, expected):
    with http_server(status, body) as port:
        check = check_server(f"http://127.0.0.1:{port}/api")
    assert check.status == expected
    assert check.usable is (expected == "usable")
    if expected != "usable":
        assert check.problem
        assert check.remedy


def test_check_server_that_is_not_there_or_never_answers():
    (port,) = free_ports(1)
    assert check_server(f"http://127.0.0.1:{port}/api").status == "silent"
    with silent_server() as port:
        assert check_server(f"http://127.0.0.1:{port}/api", limit_s=0.5).status == "silent"


def test_check_server_behind_a_proxy_that_is_down(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    bypass_proxies_for_loopback()
    with http_server(200, json.dumps(prefect.__version__)) as port:
        assert check_server(f"http://127.0.0.1:{port}/api").usable


@pytest.mark.parametrize(
    "proxy",
    ["nonsense://user:secret@here", "ftp://127.0.0.1:21", "http://user:secret/word@127.0.0.1:1"],
)
def test_check_server_refuses_proxies_that_no_client_can_use(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match=r"ALL_PROXY cannot be used .*Fix: ") as refused:
        check_server("http://127.0.0.1:1/api")
    assert "secret" not in str(refused.value)


def test_check_server_names_no_password():
    with (
        http_server(401, "{}") as port,
        temporary_settings({PREFECT_API_AUTH_STRING: "admin:secret-word"}),
    ):
        check = check_server(f"http://127.0.0.1:{port}/api")
    assert "secret-word" not in check.problem + check.remedy


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_check_server_refuses_certificates_that_cannot_be_read(monkeypatch, tmp_path, content):
    path = tmp_path / "certificates.pem"
    if content is not None:
        path.write_text(content)
    settings = {PREFECT_API_SSL_CERT_FILE: str(path)}
    with (
        temporary_settings(settings),
        pytest.raises(UserError, match=r"^PREFECT_API_SSL_CERT_FILE .*certificates.* Fix: "),
    ):
        check_server("https://127.0.0.1:9/api")
