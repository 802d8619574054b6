"""Run all services of a cluster on this machine; ``make stack`` starts this module.

The services are PostgreSQL, the Prefect server with its UI, an S3 object store, a Dask scheduler
with workers, and a Prefect worker that runs the deployments.  They are reachable from this machine
only.  Data persists between starts.  All processes end with the stack, which stops on Ctrl-C or
SIGTERM.  On Linux they also end if the stack is killed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from infra.services import (
    BUCKET,
    DATABASE,
    DATABASE_USER,
    HOST,
    INNER_PORTS,
    PUBLIC_PORTS,
    Platform,
    StackError,
    postgres_program,
    unprivileged_user,
)
from infra.supervisor import Supervisor, run_once
from ldmprobe_core.storage.proxies import bypass_proxies_for_loopback


def main() -> None:
    """Start the stack, print its addresses, and keep it running until a signal stops it."""
    parser = argparse.ArgumentParser(description="Start the whole platform on loopback.")
    parser.add_argument(
        "--data", type=Path, default=Path(".stack"), help="folder for data, logs and keys"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="number of Dask workers without GPUs"
    )
    parser.add_argument(
        "--free-ports", action="store_true", help="take free ports instead of the usual ones"
    )
    options = parser.parse_args()
    # Health checks and services connect to this machine, which proxies cannot reach, so bypass
    # them.
    bypass_proxies_for_loopback()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    supervisor = None
    try:
        if options.workers < 1:
            raise StackError(f"--workers: at least 1 is needed ({options.workers}). Fix: raise it")
        data = options.data.resolve()
        if "," in str(data):
            raise StackError(
                f"--data: SeaweedFS would take {data} as several folders, for its comma. Fix: give "
                "a folder without a comma in its path"
            )
        try:
            lock = _alone(data)
            platform = prepare(data, options.workers, options.free_ports)
            supervisor = Supervisor(data / "logs", lambda text: print(text, flush=True))
            start(platform, supervisor)
        except OSError as error:
            raise StackError(
                f"--data: {data} cannot be used ({error}). Fix: give a folder that is writable, on "
                "a disk with free space"
            ) from None
        print(welcome(platform), flush=True)
        supervisor.watch()
        lock.close()
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        if supervisor is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                # Ignore further signals, which must not interrupt the services' orderly stop.
                signal.signal(number, signal.SIG_IGN)
            supervisor.stop()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Raise `KeyboardInterrupt` on SIGTERM, so that both signals stop the stack alike."""
    raise KeyboardInterrupt


def _alone(data: Path) -> TextIO:
    """Lock the data folder; two stacks in one folder would corrupt each other's data."""
    data.mkdir(parents=True, exist_ok=True)
    lock = (data / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StackError(
            f"--data: another stack runs on {data}. Fix: stop it, or give another folder"
        ) from None
    return lock


def prepare(data: Path, workers: int, anywhere: bool) -> Platform:
    """Prepare the stack's data folder, and return the settings that its services share.

    The first start chooses secrets and free ports, and writes them to the folder.  Later starts
    read them from there.

    Args:
        data: folder for all persistent data.
        workers: number of Dask workers if there are no GPUs.
        anywhere: whether to use free ports for all services instead of the usual ones.

    Raises:
        StackError: another process uses one of the ports.
    """
    for name in ("logs", "prefect", "dask", "seaweedfs"):
        (data / name).mkdir(exist_ok=True)
    passwords = _kept(
        data / "secrets.json",
        lambda: {
            "database": secrets.token_urlsafe(24),
            "s3-key": secrets.token_hex(10),
            "s3-secret": secrets.token_urlsafe(30),
        },
    )
    # Store the ports, so that the next start with this data folder uses the same ones.
    ports_file = data / "ports.json"
    ports: dict[str, int] = _read_json(ports_file) if ports_file.exists() else {}
    names = (*PUBLIC_PORTS, *INNER_PORTS) if anywhere else INNER_PORTS
    missing = [name for name in names if name not in ports]
    ports |= dict(zip(missing, free_ports(len(missing)), strict=True))
    _private(ports_file, json.dumps(ports))
    if not anywhere:
        ports |= PUBLIC_PORTS
    for name, port in ports.items():
        if _is_busy(port):
            raise StackError(
                f"port {port} ({name}) is in use. Fix: stop the process that listens there, or "
                "start the stack with --free-ports on another --data"
            )
    platform = Platform(data, ports, passwords, workers, _gpus())
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n"
        for name, value in platform.client_environment.items()
    )
    _private(data / "env", exports)
    return platform


def start(platform: Platform, supervisor: Supervisor) -> None:
    """Start every service, and set up the database, the bucket and the deployments.

    Raises:
        StackError: a service cannot be started, or a setup step failed.
    """
    services = platform.services()
    independent = [s for s in services if s.name not in ("prefect-server", "prefect-worker")]
    _make_database(platform)
    # Services that do not need each other can start at the same time.
    for service in independent:
        supervisor.start(service)
    for service in services:
        if service not in independent:
            # The Prefect worker needs the work pool that the setup creates on the Prefect server.
            if service.name == "prefect-worker":
                run_once((sys.executable, "-m", "infra.setup"), platform.client_environment)
            supervisor.start(service)
        supervisor.wait(service)
        if service.name == "postgres":
            _make_schema(platform)


def _make_database(platform: Platform) -> None:
    """Create the files of the PostgreSQL database, unless they are complete.

    They are made in place, since the folder may be a mount point or a symlink to another disk.
    `initdb` writes `PG_VERSION` before the other files, so a file beside the folder says that the
    database is not complete.
    """
    folder, user = platform.data / "postgres", unprivileged_user()
    unfinished = folder.with_name("postgres.unfinished")
    is_complete = (folder / "PG_VERSION").exists() and not unfinished.exists()
    if not is_complete:
        _make_empty(folder, unfinished)
    if user is not None:
        shutil.chown(folder, user)
        if not _can_enter(folder, user):
            raise StackError(
                f"PostgreSQL runs as {user}, who cannot enter {folder}. Fix: start the stack as "
                "another user than root, or give a --data folder that all users can enter"
            )
    if is_complete:
        return
    password = platform.data / "database-password"
    _private(password, platform.secrets["database"])
    if user is not None:
        shutil.chown(password, user)
    try:
        run_once(
            (postgres_program("initdb"), "-D", str(folder), "-U", DATABASE_USER, "-E", "UTF8",
             "--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password}"),
            {}, user,
        )  # fmt: skip
    finally:
        password.unlink()
    unfinished.unlink()


def _make_empty(folder: Path, unfinished: Path) -> None:
    """Make an empty folder for a database, and the file that says that it is not complete.

    Only files of an interrupted creation are removed.

    Raises:
        StackError: the folder has other files, or is a symlink to no folder.
    """
    if folder.is_symlink() and not folder.is_dir():
        raise StackError(
            f"{folder} is a symlink to {folder.readlink()}, which is no folder. Fix: create it"
        )
    folder.mkdir(exist_ok=True)
    found = sorted(folder.iterdir())
    if found and not unfinished.exists():
        raise StackError(
            f"{folder} has files but no database ({found[0].name}). Fix: empty it, or if it is a "
            "mount point, replace it by a symlink to an empty folder of that disk"
        )
    unfinished.touch()
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _can_enter(folder: Path, user: str) -> bool:
    """Return whether a user may enter a folder."""
    return subprocess.run(["test", "-x", str(folder)], user=user, check=False).returncode == 0


def _make_schema(platform: Platform) -> None:
    """Create an empty database for the Prefect server, which makes its tables, if it is missing."""
    to_server = {
        "PGHOST": HOST, "PGPORT": str(platform.ports["postgres"]), "PGUSER": DATABASE_USER,
        "PGPASSWORD": platform.secrets["database"], "PGDATABASE": "postgres",
    }  # fmt: skip
    psql = (postgres_program("psql"), "-qtAc")
    known = f"select 1 from pg_database where datname = '{DATABASE}'"
    if not run_once((*psql, known), to_server).strip():
        run_once((*psql, f"create database {DATABASE}"), to_server)


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a JSON file, which is created from ``make()`` if it is missing."""
    if not path.exists():
        _private(path, json.dumps(make()))
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; raise `StackError` if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise StackError(
            f"{path} is damaged. Fix: restore it from a backup, or give another --data folder"
        )
    return content


def _private(path: Path, text: str) -> None:
    """Write a file atomically, readable only by its owner at every moment."""
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def free_ports(count: int) -> list[int]:
    """Return the numbers of free ports on this machine.

    Each number is below 55,536, because SeaweedFS adds 10,000 to its port to get a second one.
    """
    sockets: list[socket.socket] = []
    ports: list[int] = []
    while len(ports) < count:
        probe = socket.socket()
        sockets.append(probe)
        probe.bind((HOST, 0))
        if probe.getsockname()[1] < 55_536:
            ports.append(probe.getsockname()[1])
    for probe in sockets:
        probe.close()
    return ports


def _is_busy(port: int) -> bool:
    """Return whether a port of this machine is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _gpus() -> tuple[str, ...]:
    """Return the NVIDIA GPUs that this process may use, by number or by UUID."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # CUDA ignores what follows the first entry that names no GPU, such as -1.
        words = (word.strip() for word in chosen.split(","))
        return tuple(takewhile(lambda word: re.match(r"\d+$|GPU-|MIG-", word), words))
    if shutil.which("nvidia-smi") is None:
        return ()
    listing = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return tuple(str(number) for number in range(count))


def welcome(platform: Platform) -> str:
    """Return the text that a started stack prints: addresses and how to use them."""
    ports = platform.ports
    files = Path(sys.prefix) / "bin" / "activate", platform.data / "env"
    activate, env = (shlex.quote(str(file)) for file in files)
    return "\n".join(
        [
            "",
            f"Prefect UI       http://{HOST}:{ports['prefect-server']}",
            f"Dask dashboard   http://{HOST}:{ports['dask-dashboard']}",
            f"Object store     http://{HOST}:{ports['s3']} (bucket {BUCKET})",
            f"Data and logs    {platform.data}",
            "",
            "In another shell:",
            f"  . {activate}; . {env}",
            "  prefect deployment run study/process --watch",
            "  ldmprobe run tabletop --store $LDMPROBE_STORE --set execution.runner=dask \\",
            "      --set execution.address=$LDMPROBE_DASK",
            "",
            "The stack is ready. Ctrl-C stops it.",
        ]
    )


if __name__ == "__main__":
    main()
