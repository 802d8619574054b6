"""Pseudo-terminals that a test reads after the process on them has ended."""

import contextlib
import os


def everything_on(reader: int) -> str:
    """Read a terminal to its end and close it; one read gives at most a few kilobytes."""
    parts = []
    with contextlib.suppress(OSError):  # Linux raises EIO once the other side is closed.
        while part := os.read(reader, 100_000):
            parts.append(part)
    os.close(reader)
    return b"".join(parts).decode()
