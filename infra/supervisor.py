"""Supervisor that starts services as processes, checks their health, restarts and stops them."""

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
"""Largest number of restarts of one service; if it ends once more, the stack stops."""


class Supervisor:
    """Supervisor of services, which restarts those that end until `stop` is called.

    Args:
        logs: folder for log files; each service has one.
        say: function that is called with a message for each restart.
    """

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self.logs, self.say = logs, say
        self.running: dict[str, tuple[Service, subprocess.Popen[bytes]]] = {}
        self._restarts: dict[str, int] = {}
        self._stopping = False

    def start(self, service: Service) -> None:
        """Start a service without waiting until it is ready."""
        with self._log(service).open("ab") as sink:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_environment() | service.environment,
                user=service.user,
                # Keep the terminal's Ctrl-C from the service by a session of its own.  The stack
                # receives Ctrl-C, and stops its services in the right order.
                start_new_session=True,
                preexec_fn=_end_with_parent(service.stop_with) if sys.platform == "linux" else None,
            )
        self.running[service.name] = (service, process)

    def wait(self, service: Service) -> None:
        """Wait until a service passes its health check.

        Raises:
            StackError: the service ended, or did not pass in time; the message names its log file.
        """
        deadline = time.monotonic() + _WELL_LIMIT_S
        while not service.is_well():
            ended = self.running[service.name][1].poll() is not None
            if ended or time.monotonic() > deadline:
                problem = "ended" if ended else "is not healthy in time"
                raise StackError(
                    f"service {service.name} {problem}. Fix: read its log, {self._log(service)}"
                )
            time.sleep(0.2)

    def watch(self) -> None:
        """Restart services that end, until `stop` is called.

        Raises:
            StackError: a service has ended more than `_RESTARTS` times.
        """
        while not self._stopping:
            for service, process in list(self.running.values()):
                if process.poll() is not None and not self._stopping:
                    self._again(service, process)
            time.sleep(0.5)

    def _again(self, service: Service, process: subprocess.Popen[bytes]) -> None:
        """Restart a service that has ended, unless it ended too often."""
        count = self._restarts[service.name] = self._restarts.get(service.name, 0) + 1
        if count > _RESTARTS:
            raise StackError(
                f"service {service.name} has ended {count} times. Fix: read its log, "
                f"{self._log(service)}"
            )
        self.say(f"{service.name} ended ({process.returncode}) and is started again")
        self.start(service)

    def stop(self) -> None:
        """Stop every service, the last one first, and kill those that do not end in time."""
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
        """Return the path of a service's log."""
        return self.logs / f"{service.name}.log"


def _environment() -> dict[str, str]:
    """Return this process's environment without variables that name other servers or buckets."""
    excluded_prefixes = ("PREFECT_", "AWS_", "DASK_", "PG")
    return {
        key: value for key, value in os.environ.items() if not key.startswith(excluded_prefixes)
    }


def _end_with_parent(with_signal: signal.Signals) -> Callable[[], object]:
    """Return a function that a new service process calls before its program starts.

    It asks Linux to send the process a signal when the stack ends, even if the stack is killed.
    """
    # Python has no name for PR_SET_PDEATHSIG, so use its value in the C header sys/prctl.h.
    set_parent_death_signal = 1
    library = ctypes.CDLL(None)
    return lambda: library.prctl(set_parent_death_signal, int(with_signal))


def run_once(command: Sequence[str], environment: dict[str, str], user: str | None = None) -> str:
    """Run a program to its end, and return its output.

    Args:
        command: program and arguments.
        environment: environment variables in addition to those of this process.
        user: user that runs the program, or None for the current user.

    Raises:
        StackError: the program failed; the message contains the last lines of its output.
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
        last_lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise StackError(f"{Path(command[0]).name} failed: {' '.join(last_lines)}")
    return done.stdout
