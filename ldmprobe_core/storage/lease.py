"""A lease on a run: one holder at a time, with takeover when a holder stops.

Leases are numbered files, ``<location>.lease/000001`` and so on, each made only where none is.  The
highest number holds.  Its holder writes a heartbeat into it every few seconds; a process that finds
a lease that has stopped beating makes the next number, and of several that try one succeeds.  No
clock is compared with another machine's: that a lease is dead is watched for, not computed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.filesystem import Location

HEARTBEAT_S = 5.0
STALE_S = 30.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        description: in words, such as a flow run's id.
        host: machine and process namespace, within which `pid` means something.
        pid: process that beats.
        started_at: when it started, in a unit of its own machine's; a pid may come back.
        heartbeat: counts up while the holder lives.
    """

    key: str
    description: str
    host: str
    pid: int
    started_at: float
    heartbeat: int = 0

    @classmethod
    def here(cls, description: str) -> Holder:
        """This process."""
        return cls(
            uuid.uuid4().hex, description, _host(), os.getpid(), _process_start_time(os.getpid())
        )

    @property
    def is_dead(self) -> bool:
        """Its process is known to be gone: only on this machine can that be known at once."""
        if self.host != _host():
            return False
        try:
            return _process_start_time(self.pid) != self.started_at
        except psutil.NoSuchProcess:
            return True


class Lease:
    """A held lease.

    Attributes:
        previous: the dead holders before it, the last one last; several, where one that had just
            taken over was killed before it could tell of the one before.
    """

    def __init__(
        self, location: Location, number: int, holder: Holder, previous: tuple[Holder, ...]
    ) -> None:
        self.previous = previous
        self._location, self._number, self._holder = location, number, holder
        self._released, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Raise if another process has taken the lease over, for example after a suspend.

        Raises:
            RunError: another one holds the place now, or has held it since.
        """
        if not self._is_mine():
            self._lost = True
        if self._lost:
            raise RunError(
                f"{self._location.url.removesuffix('.lease')} was taken over by another process "
                "while "
                "this one did not answer: leave it to that one, or start again after it"
            )

    def _is_mine(self) -> bool:
        """This lease has the highest number, and its file still carries our key."""
        if max(_numbers(self._location), default=0) != self._number:
            return False
        held_by = _read(self._location, self._number)
        return held_by is not None and held_by.key == self._holder.key

    def _keep_alive(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            self._holder = replace(self._holder, heartbeat=self._holder.heartbeat + 1)
            with suppress(Exception):  # the store may be away for a moment; the next beat counts
                if not self._is_mine():
                    self._lost = True
                    return
                self._location.write_text(_name(self._number), _text(self._holder))

    def release(self) -> None:
        """Give the place back."""
        self._released.set()
        self._thread.join(timeout=60)
        # If the store is unreachable the heartbeat stops, which releases the lease in time.
        with suppress(Exception):
            if not self._lost and self._is_mine():
                for number in sorted(_numbers(self._location)):
                    self._location.remove(_name(number))
                if not self._location.remote:
                    os.rmdir(self._location.url)


@contextmanager
def hold_lease(url: str, description: str, patience_s: float = 0.0) -> Iterator[Lease]:
    """Hold the lease of a run; other processes wait or are refused.

    Args:
        url: of the place; the lease lies beside it.
        description: who wants it, in words that another one will be told.
        patience_s: how long to wait for a living holder.

    Raises:
        UserError: another process holds it, and lives.
    """
    location, holder_here = Location(f"{url.rstrip('/')}.lease"), Holder.here(description)
    deadline = time.monotonic() + patience_s
    lease, unreadable = None, (0, 0.0)
    while lease is None:
        number = max(_numbers(location), default=0)
        held_by = _read(location, number) if number else None
        if number and held_by is None:  # just given back, or spoilt by a power cut
            if unreadable[0] != number:
                unreadable = number, time.monotonic()
            if time.monotonic() - unreadable[1] < STALE_S:
                time.sleep(0.1)
                continue
        if held_by is None or held_by.is_dead or _stopped(location, number, held_by, deadline):
            lease = _take(location, number + 1, holder_here, held_by)
        elif time.monotonic() >= deadline:
            raise UserError(
                f"{url} is being worked on by {held_by.description} (process {held_by.pid} on "
                f"{held_by.host.partition('/')[0]}): wait for it, or stop it"
            )
    try:
        yield lease
    finally:
        lease.release()


def _take(
    location: Location, number: int, holder_here: Holder, previous: Holder | None
) -> Lease | None:
    """Create the next lease file; None if another process created it first."""
    if not location.create(_name(number), _text(holder_here)):
        return None
    numbers = _numbers(location)
    overtaken = max(numbers, default=0) != number
    before = _read(location, number - 1) if previous is not None else None
    vanished = previous is not None and (before is None or before.key != previous.key)
    if overtaken or vanished:  # what we had looked at is long over
        location.remove(_name(number))
        return None
    found = (_read(location, earlier) for earlier in sorted(numbers) if earlier < number)
    return Lease(
        location, number, holder_here, tuple(holder for holder in found if holder is not None)
    )


def _stopped(location: Location, number: int, holder: Holder, deadline: float) -> bool:
    """Watch a lease: it has stopped beating, or waiting for it is over.

    A living holder is known by its next beat, which comes long before `STALE_S` is over.
    """
    since = time.monotonic()
    while time.monotonic() - since < STALE_S:
        time.sleep(0.2)
        now = _read(location, number)
        if now is None or holder.is_dead:
            return False  # the caller reads the lease again
        if now.heartbeat != holder.heartbeat:
            holder, since = now, time.monotonic()
            if since >= deadline:
                return False
    return True


def _numbers(location: Location) -> set[int]:
    return {int(name) for name in location.files() if name.isdecimal()}


def _name(number: int) -> str:
    return f"{number:06d}"


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder))


def _read(location: Location, number: int) -> Holder | None:
    """Who holds a number; None where it was given back or is not wholly written yet."""
    try:
        return Holder(**json.loads(location.read_text(_name(number))))
    except (UserError, ValueError, TypeError):
        return None


def _host() -> str:
    """This machine since it was started, and its process namespace: names alone are shared."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def _process_start_time(pid: int) -> float:
    """When a process started, in ticks since the machine did, which no clock that is set changes.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(pid).create_time()
