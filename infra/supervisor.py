"""Starting processes, seeing that they are well, starting them again, stopping every one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.services import Service, StackError

_WELL_LIMIT_S = 90.0
_STOP_LIMIT_S = 20.0
_RESTARTS = 20
"""How often a service may end by itself before the stack gives up, like compose's on-failure."""


class Supervisor:
    """Keeps services running until it is told to stop.

    Args:
        logs: folder of their output, a file a service.
        say: told what happens, in words.
    """

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self.logs, self.say = logs, say
        self.running: dict[str, tuple[Service, subprocess.Popen[bytes]]] = {}
        self._restarts: dict[str, int] = {}
        self._stopping = False

    def start(self, service: Service) -> None:
        """Start a service."""
        with self._log(service).open("ab") as sink:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_environment() | service.environment,
                user=service.user,
                start_new_session=True,  # Ctrl-C is for the stack, which stops them in order
                preexec_fn=_end_with_parent(service.stop_with) if sys.platform == "linux" else None,
            )
        self.running[service.name] = (service, process)

    def wait(self, service: Service) -> None:
        """Wait until a service is well.

        Raises:
            StackError: it ended, or is not well in time; its log is named.
        """
        deadline = time.monotonic() + _WELL_LIMIT_S
        while not service.is_well():
            ended = self.running[service.name][1].poll() is not None
            if ended or time.monotonic() > deadline:
                how = "ended" if ended else "is not well in time"
                raise StackError(f"{service.name} {how}; its log is {self._log(service)}")
            time.sleep(0.2)

    def watch(self) -> None:
        """Start again what ends by itself, until `stop` is called.

        Raises:
            StackError: a service ends over and over.
        """
        while not self._stopping:
            for service, process in list(self.running.values()):
                if process.poll() is not None and not self._stopping:
                    self._again(service, process)
            time.sleep(0.5)

    def _again(self, service: Service, process: subprocess.Popen[bytes]) -> None:
        count = self._restarts[service.name] = self._restarts.get(service.name, 0) + 1
        if count > _RESTARTS:
            raise StackError(
                f"{service.name} has ended {count} times; its log is {self._log(service)}"
            )
        self.say(f"{service.name} ended ({process.returncode}) and is started again")
        self.start(service)

    def stop(self) -> None:
        """Stop every service, the last one first; what does not listen is killed."""
        self._stopping = True
        for service, process in reversed(list(self.running.values())):
            if process.poll() is None:
                process.send_signal(service.stop_with)
                try:
                    process.wait(_STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.running.clear()

    def _log(self, service: Service) -> Path:
        return self.logs / f"{service.name}.log"


def _environment() -> dict[str, str]:
    """This process's own, less what would lead a service to another server or bucket."""
    led_astray = ("PREFECT_", "AWS_", "DASK_", "PG")
    return {key: value for key, value in os.environ.items() if not key.startswith(led_astray)}


def _end_with_parent(with_signal: signal.Signals) -> Callable[[], object]:
    """Ask Linux to end a service with the stack, after kill -9 too."""
    set_parent_death_signal = 1  # from sys/prctl.h
    library = ctypes.CDLL(None)
    return lambda: library.prctl(set_parent_death_signal, int(with_signal))


def run_once(command: Sequence[str], environment: dict[str, str], user: str | None = None) -> str:
    """Run a program to its end, and give its output.

    Raises:
        StackError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(
        command,
        env=_environment() | environment,
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise StackError(f"{Path(command[0]).name} failed: {' '.join(said)}")
    return done.stdout
