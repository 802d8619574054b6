"""A server on loopback that speaks the hub's protocol, as far as downloads need it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pth")


class Hub:
    """Repositories, plain files, and the faults of a server.

    Attributes:
        repositories: hub id to path within the repository to content.
        files: path of a URL to content, outside any repository.
        faults: path of a file to what its next answers do: a status, the number of bytes after
            which the connection is cut, or -1 to answer a range with the file's beginning.
        denied: hub id to (status, headers) of every answer about this repository.
        commit: hash of the commit to which every branch points.
        requests: (method, path, range) of each request for a file.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int]] = {}
        self.denied: dict[str, tuple[int, dict[str, str]]] = {}
        self.commit = COMMIT
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def add(self, name: str, folder: Path) -> None:
        self.repositories[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Point the hub's client to this server and to a cache."""
        constants = huggingface_hub.constants
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Blocks so small that a tiny file has several.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path in hub.files:
                self.file(path, hub.files[path])
            elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/.*)?", path):
                self.api(match[1], match[2] or "")
            elif match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", path):
                if self.admits(match[1]):
                    self.file(match[2], hub.repositories[match[1]][match[2]])
            else:
                self.answer(404, b"")

        do_HEAD = do_GET  # noqa: N815  (a name of the standard library)

        def admits(self, name: str) -> bool:
            missing = (404, {"X_Error_Code": "RepoNotFound"})
            status, headers = hub.denied.get(name, (200, {}))
            if name not in hub.repositories and status == 200:
                status, headers = missing
            if status != 200:
                self.answer(status, b"{}", **headers)
            return status == 200

        def api(self, name: str, rest: str) -> None:
            if not self.admits(name):
                return
            entries = [_entry(*item) for item in sorted(hub.repositories[name].items())]
            content: Any = entries
            if not rest.startswith("/tree/"):
                siblings = [
                    {**entry, "rfilename": entry["path"], "blobId": entry["oid"]}
                    for entry in entries
                ]
                content = {"id": name, "modelId": name, "sha": hub.commit, "siblings": siblings}
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def file(self, name: str, data: bytes) -> None:
            span = self.headers.get("Range")
            hub.requests.append((self.command, name, span))
            start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
            fault = hub.faults.get(name, []) if self.command == "GET" else []
            limit = fault.pop(0) if fault else None
            if limit == -1:
                start, limit = 0, None
            if start >= len(data) > 0:
                limit = 416
            if limit in (401, 403, 416, 503):
                self.answer(limit, b"")
                return
            etag = _entry(name, data).get("lfs", {"oid": hashlib.sha1(data).hexdigest()})["oid"]
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", hub.commit)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command != "HEAD":
                # Fewer bytes than announced are a connection that was cut.
                self.wfile.write(data[start:][:limit])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a hub that is empty at first."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
