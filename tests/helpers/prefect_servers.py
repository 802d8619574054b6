"""Prefect servers for tests: a database with its tables, and a server that many tests can share.

Creating the tables takes as much CPU time as the rest of a server's start, so it is done once.
Prefect is imported in the functions, because most tests do not need it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 120


def database_in(folder: Path) -> Path:
    """Return the PREFECT_HOME folder in a folder that processes share, with an empty database.

    The first process that calls this function creates the database; the others wait for it.
    """
    home, part = folder / "prefect-database", folder / "prefect-database.part"
    with (folder / "prefect-database.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(
                command, env=kept | {"PREFECT_HOME": str(part)},
                capture_output=True, check=True, timeout=400,
            )  # fmt: skip
            part.rename(home)
    return home


def copy_database(home: Path, folder: Path) -> Path:
    """Copy the database of a server that does not run into a new PREFECT_HOME, and return that."""
    folder.mkdir(parents=True)
    (path,) = home.glob("*.db")  # no journal is left, so that this file is the whole database
    shutil.copy(path, folder)
    return folder


@contextmanager
def server_on(home: Path) -> Iterator[str]:
    """Run a Prefect server with the database in a PREFECT_HOME folder, and yield its API's URL."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import (
        PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        PREFECT_SERVER_DATABASE_TIMEOUT,
        temporary_settings,
    )

    settings = {
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home}/prefect.db",
        # On a busy machine, a writer may wait longer for the one before it than Prefect's default.
        PREFECT_SERVER_DATABASE_TIMEOUT: 60,
        PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT: 60,
    }
    server = SubprocessASGIServer()
    with temporary_settings(settings):
        server.start(timeout=START_LIMIT_S)
    try:
        yield server.api_url
    finally:
        server.stop()


@contextmanager
def connected_to(url: str) -> Iterator[None]:
    """Use a Prefect server in this process; at the end, send it the last log lines and events."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=20)
