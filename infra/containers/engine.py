"""Docker engine for the trial: the running one, or one that is started for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 60.0


class TrialError(Exception):
    """Error of a failed step of the container trial; the message says which one, and why."""


class Engine:
    """Docker engine that is already running, or that the trial starts.

    Args:
        folder: folder for the images, the socket and the log of an engine that the trial starts.

    Attributes:
        owned: whether the trial starts the engine, and may therefore restart it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment: dict[str, str] = {"DOCKER_BUILDKIT": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._firewall: bytes | None = None
        self._client = _client()
        self.owned = self.docker("info", check=False).returncode != 0
        if self.owned:
            self._environment["DOCKER_HOST"] = f"unix://{folder}/docker.sock"

    def start(self) -> None:
        """Start a Docker engine for the trial, unless one is already running.

        Raises:
            TrialError: there is no program dockerd, no permission, or no answer within a minute.
        """
        if not self.owned:
            return
        if shutil.which("dockerd") is None or os.geteuid() != 0:
            raise TrialError(
                "no Docker engine answers. Fix: start one, or run the trial as root on a machine "
                "with the program dockerd (apt-get install docker.io docker-compose tini)"
            )
        if self._firewall is None and shutil.which("iptables-save"):
            self._firewall = subprocess.run(
                ["iptables-save"], capture_output=True, check=False
            ).stdout
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--host", self._environment["DOCKER_HOST"],
                 "--data-root", str(self.folder / "images"),
                 "--exec-root", str(self.folder / "exec"),
                 "--pidfile", str(self.folder / "pid")],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_LIMIT_S
        while self.docker("info", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TrialError(
                    f"dockerd did not start. Fix: read its log, {self.folder}/dockerd.log"
                )
            # The engine does not announce that it is ready, so ask again until the deadline.
            time.sleep(0.3)

    def stop(self) -> None:
        """Stop the engine that `start` started."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_LIMIT_S)
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self, keep_images: bool) -> None:
        """Stop the engine, and undo its changes to the machine's network and disk.

        Args:
            keep_images: whether a later trial in the same folder can use the images again.
        """
        if self._process is None:
            return
        self.stop()
        if shutil.which("ip"):
            subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
        if shutil.which("iptables-restore"):
            saved = self._firewall or b"*filter\n:FORWARD ACCEPT\nCOMMIT\n"
            # Docker adds rules to these two tables.  The saved text may leave out a table that was
            # empty, and Docker's rules in it would remain, so add the missing tables.
            for table in (b"filter", b"nat"):
                if b"*" + table not in saved:
                    saved += b"*" + table + b"\nCOMMIT\n"
            subprocess.run(["iptables-restore"], input=saved, capture_output=True, check=False)
        if not keep_images:
            shutil.rmtree(self.folder, ignore_errors=True)

    def docker(
        self, *words: str, check: bool = True, limit_s: float = 1800.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Docker, and return its exit code and output.

        Raises:
            TrialError: the command failed, and ``check`` is true.
        """
        return self._call([self._client, *words], check, limit_s)

    def compose(
        self, *words: str, env_file: Path, project: str, check: bool = True, limit_s: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Docker Compose on docker-compose.yml in the current folder.

        Raises:
            TrialError: the command failed, and ``check`` is true.
        """
        plugin = self.docker("compose", "version", check=False).returncode == 0
        program = [self._client, "compose"] if plugin else ["docker-compose"]
        options = ["--env-file", str(env_file), "-p", project, "-f", "docker-compose.yml"]
        return self._call([*program, *options, *words], check, limit_s)

    def _call(
        self, command: list[str], check: bool, limit_s: float
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=os.environ | self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise TrialError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
        return done


def _client() -> str:
    """Return the path of the first Docker client that can build with BuildKit.

    Recent clients need a plugin for that, which a machine may lack although it has another client.
    """
    for program in (shutil.which("docker"), "/usr/bin/docker"):
        if program and Path(program).exists():
            words, environment = [program, "build", "--help"], os.environ | {"DOCKER_BUILDKIT": "1"}
            done = subprocess.run(words, env=environment, capture_output=True, check=False)
            if done.returncode == 0:
                return program
    raise TrialError("Docker client: none has BuildKit. Fix: install Docker with its plugin buildx")


@contextmanager
def engine(folder: Path, keep_images: bool) -> Iterator[Engine]:
    """Start a Docker engine unless one is running, yield it, and remove the started one at exit."""
    provided = Engine(folder)
    try:
        provided.start()
        yield provided
    finally:
        provided.remove(keep_images)
