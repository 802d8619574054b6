"""Object stores: clients, credentials, endpoints, and errors of the server."""

import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from zarr.core.buffer import default_buffer_prototype

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.stores import s3_client
from ldmprobe_core.storage.stores.object_store import open_store
from tasks.retries import is_transient


def test_open_store_names_the_clients_when_it_is_given_another(monkeypatch):
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", "curl")
    with pytest.raises(UserError, match=r"LDMPROBE_S3_CLIENT: unknown client \('curl'\)"):
        open_store("s3://bucket/prefix")


def test_open_store_without_credentials_is_a_user_error(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"object store: no credentials\. Fix: set AWS_ACCESS"):
        open_store("s3://bucket/prefix")


def test_open_store_finds_endpoint_and_region_in_profile_and_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        "[profile mine]\nregion = eu-west-3\nservices = there\n"
        "[services there]\ns3 =\n  endpoint_url = http://127.0.0.1:2\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    config = open_store("s3://bucket/a").store.config
    assert (config["region"], config["endpoint"]) == ("eu-west-3", "http://127.0.0.1:2")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    config = open_store("s3://bucket/a").store.config
    assert config["region"] == "eu-central-1"
    assert "endpoint" not in config
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    assert open_store("s3://bucket/a").store.config["endpoint"] == "http://127.0.0.1:3"


@pytest.mark.parametrize(("status", "passing"), [(503, True), (403, False)])
def test_http_errors_of_an_object_store_are_os_errors_and_503_is_transient(
    monkeypatch, status, passing
):
    """The whole of Zarr, Prefect's retries and messages know those, and none of a client's own."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(s3_client, "RETRIES", {"max_retries": 0})
    monkeypatch.setattr(s3_client, "WAITS_S", (0.01,))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        store = open_store("s3://bucket/prefix")
        with pytest.raises(OSError, match="object store: ") as found:
            asyncio.run(store.get("a/c/0", default_buffer_prototype()))
    finally:
        server.shutdown()
        server.server_close()
    assert is_transient(found.value) is passing
    assert "\n" not in str(found.value)


def test_repr_of_a_store_has_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-value")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket/prefix")
    assert "a-secret" not in repr(store) + str(store) + repr(store.store.config)
