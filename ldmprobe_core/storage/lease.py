"""Lease on a run: one process at a time holds it, and it expires when that process stops.

Leases are numbered files, ``<location>.lease/000001`` and so on.  The file with the highest number
is the valid lease.  Its holder rewrites the file with a new heartbeat every few seconds.  A process
that sees no new heartbeat for `STALE_S` seconds may take over by creating the file with the next
number.  Files are created atomically, so only one of several processes succeeds.  Each waiting
process measures the time with its own clock, so the clocks of machines need not agree.

`flows.run_lock` holds the lease of a run during a flow, and `Run.creation_lock` holds another lease
while groups are created.  A lease does not lock files: a process that was suspended can still write
after its lease has expired, so it must call `Lease.require_held` before it starts further work.
The workers of one flow share its lease, because their units of work write different chunks.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ldmprobe_core.errors import LdmprobeError, RunError, UserError
from ldmprobe_core.storage.filesystem import Location

HEARTBEAT_S = 5.0
STALE_S = 30.0

MOST_RACES = 30
"""Largest number of attempts to create the next lease; pauses between them grow to 2 seconds."""


@dataclass(frozen=True)
class Holder:
    """Record of the process that holds a lease.

    Attributes:
        key: random key that identifies one acquisition of a lease.
        description: name of the holder for messages, such as a flow run's id.
        host: machine, boot and process namespace, within which ``pid`` is unique.
        pid: id of the process.
        started_at: start time of the process, which tells it from a later process with its pid.
        heartbeat: counter that increases while the holder is alive.
    """

    key: str
    description: str
    host: str
    pid: int
    started_at: float
    heartbeat: int = 0

    @classmethod
    def here(cls, description: str) -> Holder:
        """Build the holder record of the current process."""
        return cls(
            uuid.uuid4().hex, description, _host(), os.getpid(), _process_start_time(os.getpid())
        )

    @property
    def is_dead(self) -> bool:
        """Flag that is True if the holder has ended; False for a process on another machine."""
        if self.host != _host():
            return False
        try:
            return _process_start_time(self.pid) != self.started_at
        except psutil.NoSuchProcess:
            return True


class Lease:
    """Lease that this process holds; a thread writes heartbeats until `release` is called.

    Attributes:
        previous: earlier holders whose leases expired, oldest first; several if one of them ended
            before it could report the one before.
        lost: whether another process has taken over the lease.
    """

    def __init__(
        self, location: Location, number: int, holder: Holder, previous: tuple[Holder, ...]
    ) -> None:
        self.previous = previous
        self._location, self._number, self._holder = location, number, holder
        self.lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Check that this process still holds the lease; a suspended process can lose it.

        Raises:
            RunError: another process holds the lease, or has held it in the meantime.
        """
        if not self._is_mine():
            self.lost = True
        if self.lost:
            raise RunError(
                f"{self._location.url.removesuffix('.lease')} was taken over by another process "
                "while this process was suspended. Fix: wait until the other process has finished, "
                "then repeat the command"
            )

    def _is_mine(self) -> bool:
        """Return whether this lease is the newest, and its file still names this process."""
        if max(_numbers(self._location), default=0) != self._number:
            return False
        held_by = _read(self._location, self._number)
        return held_by is not None and held_by.key == self._holder.key

    def _keep_alive(self) -> None:
        """Run the heartbeat thread: rewrite the lease's file at intervals until it is released."""
        while not self._released.wait(HEARTBEAT_S):
            self._holder = replace(self._holder, heartbeat=self._holder.heartbeat + 1)
            # If the store cannot be reached for a moment, this heartbeat is lost.  The thread must
            # not end because of that, so errors are ignored and the next heartbeat is tried.
            with suppress(Exception):
                if not self._is_mine():
                    self.lost = True
                    return
                self._location.write_text(_name(self._number), _text(self._holder))

    def abandon(self) -> None:
        """Stop the heartbeat but keep the lease's file, as if this process had crashed.

        The next holder then finds this one among its `previous`, and can record its end.
        """
        self._released.set()
        self.lost = True

    def release(self) -> None:
        """Stop the heartbeat and remove the lease, if this process still holds it."""
        self._released.set()
        self._thread.join(timeout=60)
        # If the store cannot be reached, the file cannot be removed.  The error is ignored, because
        # a lease without heartbeats expires anyway.
        with suppress(Exception):
            if not self.lost and self._is_mine():
                for number in sorted(_numbers(self._location)):
                    self._location.remove(_name(number))
                if not self._location.remote:
                    os.rmdir(self._location.url)


@contextmanager
def hold_lease(
    url: str,
    description: str,
    patience_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """Hold the lease of a run during a ``with`` block; other processes wait or fail meanwhile.

    Args:
        url: URL of the run; the lease's files are in a folder beside the run.
        description: name of this process in the messages of other processes.
        patience_s: longest time in seconds to wait for a holder that is alive.
        sleep: function that pauses between two attempts, given seconds.

    Raises:
        UserError: another process that is alive holds the lease.
        RunError: the lease could not be created in `MOST_RACES` attempts.
    """
    location, holder_here = Location(f"{url.rstrip('/')}.lease"), Holder.here(description)
    deadline = time.monotonic() + patience_s
    lease, unreadable, lost_races = None, (0, 0.0), 0
    while lease is None:
        number = max(_numbers(location), default=0)
        held_by = _read(location, number) if number else None
        if number and held_by is None:
            # The lease's file is missing because it was just released, or it is unreadable after a
            # power failure.  An unreadable file expires after `STALE_S` seconds, like a lease
            # without heartbeats.
            if unreadable[0] != number:
                unreadable = number, time.monotonic()
            if time.monotonic() - unreadable[1] < STALE_S:
                sleep(0.1)
                continue
        if held_by is None or held_by.is_dead or _stopped(location, number, held_by, deadline):
            lease = take_lease(location, number + 1, holder_here, held_by)
            if lease is None:
                lost_races += 1
                if lost_races >= MOST_RACES:
                    raise RunError(
                        f"{url}: the lease could not be taken in {MOST_RACES} tries. Fix: check "
                        "that the store keeps the files that are written to it, then repeat the "
                        "command"
                    )
                sleep(min(0.05 * 2**lost_races, 2.0) * random.uniform(0.5, 1.0))
        elif time.monotonic() >= deadline:
            raise UserError(
                f"{url} is being worked on by {held_by.description} (process {held_by.pid} on "
                f"{held_by.host.partition('/')[0]}). Fix: wait until that process ends, or stop it"
            )
    try:
        yield lease
    finally:
        lease.release()


def holder_of(url: str) -> Holder | None:
    """Return the process that holds the lease of a run; None if no process does.

    A holder on another machine counts until it has written no heartbeat for `STALE_S` seconds, by
    the clocks of this machine and of the store.

    Args:
        url: URL of the run.
    """
    location = Location(f"{url.rstrip('/')}.lease")
    number = max(_numbers(location), default=0)
    holder = _read(location, number) if number else None
    if holder is None or holder.is_dead:
        return None
    if holder.host != _host():
        try:
            written = location.modified(_name(number))
        except FileNotFoundError:
            return None  # The holder released the lease after it was read above.
        if (datetime.now(UTC) - written).total_seconds() > STALE_S:
            return None
    return holder


def take_lease(
    location: Location, number: int, holder_here: Holder, previous: Holder | None
) -> Lease | None:
    """Acquire a lease that is absent or expired, by creating the file with the next number.

    Args:
        number: number of the new lease, one more than that of ``previous``.
        previous: holder of the expired lease, as read before; None if there was no lease.

    Returns:
        the lease; None if another process was first, or if the files have changed since the
        expired lease was read.
    """
    if not location.create(_name(number), _text(holder_here)):
        return None
    numbers = _numbers(location)
    overtaken = max(numbers, default=0) != number
    before = _read(location, number - 1) if previous is not None else None
    vanished = previous is not None and (before is None or before.key != previous.key)
    if overtaken or vanished:
        # Since the expired lease was read, another process has taken or released a lease.  This
        # process therefore must not hold the new lease, and removes the file that it has created.
        location.remove(_name(number))
        return None
    holders = (_read(location, earlier) for earlier in sorted(numbers) if earlier < number)
    return Lease(
        location, number, holder_here, tuple(holder for holder in holders if holder is not None)
    )


def _stopped(location: Location, number: int, holder: Holder, deadline: float) -> bool:
    """Watch a lease, and return True if no heartbeat arrives for `STALE_S` seconds.

    Returns False early if the lease disappears, if its process is known to have ended, or if a
    heartbeat arrives after the deadline; the caller then reads the lease again.
    """
    since = time.monotonic()
    while time.monotonic() - since < STALE_S:
        time.sleep(0.2)
        now = _read(location, number)
        if now is None or holder.is_dead:
            return False
        if now.heartbeat != holder.heartbeat:
            holder, since = now, time.monotonic()
            if since >= deadline:
                return False
    return True


def _numbers(location: Location) -> set[int]:
    """Return the numbers of all lease files."""
    return {int(name) for name in location.files() if name.isdecimal()}


def _name(number: int) -> str:
    """Return the file name of the lease with the given number."""
    return f"{number:06d}"


def _text(holder: Holder) -> str:
    """Serialise the holder of a lease as JSON, the content of the lease's file."""
    return json.dumps(asdict(holder))


def _read(location: Location, number: int) -> Holder | None:
    """Read the holder of a numbered lease; None if the file is missing or incomplete."""
    try:
        return Holder(**json.loads(location.read_text(_name(number))))
    except (LdmprobeError, ValueError, TypeError):
        return None


def _host() -> str:
    """Return an identifier of the host, boot and namespace within which process ids are unique."""
    parts = [socket.gethostname()]
    # Only Linux gives boot id and namespace in /proc; elsewhere the host name alone is used.
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def _process_start_time(pid: int) -> float:
    """Return the start time of a process in clock ticks since boot.

    Unlike a time since the epoch, it does not change when the system clock is set.

    On systems without /proc the unit is seconds since the epoch.

    Raises:
        psutil.NoSuchProcess: no process has this id.
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(pid).create_time()
