"""Download of single files from URLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from ldmprobe_core.errors import RunError
from ldmprobe_core.pipeline.fetching.checksums import (
    convert_pickle,
    hash_file,
    record_of,
    require_checksum,
    write_record,
)
from ldmprobe_core.pipeline.fetching.failures import fetch_failures
from ldmprobe_core.study.readers.hub_cache import PublishedFile

_TIMEOUT_S = 30
_COMPLETE = 416
"""HTTP status for a range that begins at the file's end: the file on this machine is complete."""

_PLAIN = {"Accept-Encoding": "identity"}
"""Request headers that forbid compression, which would change the size of the response."""


@dataclass(frozen=True)
class UrlDownload:
    """Download of one file from a URL.

    Attributes:
        field: key of the study that names the file.
        file: URL, name and target.
        size: number of bytes; 0 if the server does not tell.
    """

    field: str
    file: PublishedFile
    size: int

    def run(self, advance: Callable[[int], None]) -> None:
        """Download the file, verify it, convert it if it is a pickle, and record its checksum.

        An interrupted download is continued where it stopped.

        Args:
            advance: function that is told the number of further bytes.

        Raises:
            UserError, RunError: see `fetch_failures`.
        """
        target = self.file.target
        part = target.with_name(self.file.name + ".part")
        with fetch_failures(self.field, self.file.origin):
            target.parent.mkdir(parents=True, exist_ok=True)
            is_plain = True
            start = part.stat().st_size if part.exists() else 0
            headers = _PLAIN | ({"Range": f"bytes={start}-"} if start else {})
            with httpx.stream(
                "GET", self.file.origin, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
            ) as response:
                if not (start and response.status_code == _COMPLETE):
                    response.raise_for_status()
                    resumes = response.status_code == httpx.codes.PARTIAL_CONTENT
                    if resumes and not _starts_at(response, start):
                        part.unlink()
                        raise RunError(
                            f"{self.field}: the server continued another part of the file than was "
                            f"asked for ({self.file.origin!r}). Fix: repeat the command, which "
                            "begins this file again"
                        )
                    # Decoding of a compressed response, which was not asked for, changes its size.
                    is_plain = "Content-Encoding" not in response.headers
                    with part.open("ab" if resumes else "wb") as out:
                        for block in response.iter_bytes():
                            out.write(block)
                            advance(len(block))
            if self.size and is_plain and part.stat().st_size != self.size:
                received = part.stat().st_size
                part.unlink()
                raise RunError(
                    f"{self.field}: {self.file.name} has {received} bytes instead of the "
                    f"{self.size} that the server announced ({self.file.origin!r}), and was "
                    "deleted. Fix: repeat the command"
                )
            if self.file.checksum is not None:
                algorithm, digits = self.file.checksum
                require_checksum(self.field, part, digits, hash_file(part, algorithm))
            if target.suffix == os.path.splitext(self.file.name)[1]:
                os.replace(part, target)
            else:
                convert_pickle(self.field, part, target)
            record = record_of(target, origin=self.file.origin)
            write_record(target.with_name(target.name + ".json"), record)


def _starts_at(response: httpx.Response, start: int) -> bool:
    """Return whether a partial response begins at the byte that was asked for."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def find_url(field: str, file: PublishedFile) -> UrlDownload:
    """Prepare the download of a file at a URL, and request the file's size.

    Raises:
        UserError, RunError: see `fetch_failures`.
    """
    with fetch_failures(field, file.origin):
        response = httpx.head(
            file.origin, headers=_PLAIN, follow_redirects=True, timeout=_TIMEOUT_S
        )
        response.raise_for_status()
        return UrlDownload(field, file, int(response.headers.get("Content-Length", 0)))
