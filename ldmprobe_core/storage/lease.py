"""A lease on a run: one holder at a time, with takeover when a holder stops.

Leases are numbered files, ``<location>.lease/000001`` and so on, created atomically; the highest
number is the valid one.  Its holder rewrites it with a new heartbeat every few seconds.  A process
that sees no new heartbeat for `STALE_S` creates the next number; if several try, one succeeds.
Expiry is measured with the waiting process's own clock, so clocks of machines need not agree.

`flows.run_lock` holds the lease of a run during a flow, and `Run.creation_lock` another one while
groups are created.  A lease is no lock on files, and no lock between the workers of one flow, whose
units write different chunks: a holder that was suspended can still write after its lease expired,
so it calls `Lease.require_held` before it starts further work.
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
from pathlib import Path

import psutil

from ldmprobe_core.errors import LdmprobeError, RunError, UserError
from ldmprobe_core.storage.filesystem import Location

HEARTBEAT_S = 5.0
STALE_S = 30.0

MOST_RACES = 30
"""Most tries to create the next lease; the pauses between them grow to two seconds."""


@dataclass(frozen=True)
class Holder:
    """Process that holds a lease.

    Attributes:
        key: random, one per acquisition.
        description: of the holder for messages, such as a flow run's id.
        host: machine, boot and process namespace, within which ``pid`` is unique.
        pid: id of the process.
        started_at: start time of the process on its machine, since a pid may be reused.
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
        """Record of this process as holder of a lease."""
        return cls(
            uuid.uuid4().hex, description, _host(), os.getpid(), _process_start_time(os.getpid())
        )

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended; always False on another machine."""
        if self.host != _host():
            return False
        try:
            return _process_start_time(self.pid) != self.started_at
        except psutil.NoSuchProcess:
            return True


class Lease:
    """Lease that this process holds; a thread renews it until `release`.

    Attributes:
        previous: expired holders, oldest first; more than one if a successor died before reporting
            its predecessor.
        lost: whether another process took the lease over.
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
        """Raise if another process has taken the lease over, for example after a suspend.

        Raises:
            RunError: another process holds the lease now, or has held it since.
        """
        if not self._is_mine():
            self.lost = True
        if self.lost:
            raise RunError(
                f"{self._location.url.removesuffix('.lease')} was taken over by another process "
                "while this one did not respond. Fix: let that one finish, or start again after it"
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
            with suppress(
                Exception
            ):  # the store may be unreachable for a moment; retry at the next one
                if not self._is_mine():
                    self.lost = True
                    return
                self._location.write_text(_name(self._number), _text(self._holder))

    def abandon(self) -> None:
        """Leave the lease as a process that ended without a word does.

        The next holder then finds this one among its `previous`, and can record its end.
        """
        self._released.set()
        self.lost = True

    def release(self) -> None:
        """Stop the heartbeat and remove the lease, if this process still holds it."""
        self._released.set()
        self._thread.join(timeout=60)
        # If the store is unreachable the heartbeat stops, which releases the lease in time.
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
    """Hold the lease of a run; other processes wait or are refused.

    Args:
        url: of the run; the lease is a folder beside it.
        description: of this process, shown to others that wait.
        patience_s: how long to wait for a holder that is alive.
        sleep: pauses between two tries.

    Raises:
        UserError: another process that is alive holds the lease.
        RunError: the lease could not be created in `MOST_RACES` tries.
    """
    location, holder_here = Location(f"{url.rstrip('/')}.lease"), Holder.here(description)
    deadline = time.monotonic() + patience_s
    lease, unreadable, lost_races = None, (0, 0.0), 0
    while lease is None:
        number = max(_numbers(location), default=0)
        held_by = _read(location, number) if number else None
        if number and held_by is None:  # just released, or damaged by a power failure
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
                        f"{url}: the lease could not be taken in {MOST_RACES} tries. Fix: see "
                        "whether the store keeps what is written to it, then repeat the command"
                    )
                sleep(min(0.05 * 2**lost_races, 2.0) * random.uniform(0.5, 1.0))
        elif time.monotonic() >= deadline:
            raise UserError(
                f"{url} is being worked on by {held_by.description} (process {held_by.pid} on "
                f"{held_by.host.partition('/')[0]}). Fix: wait for it, or stop it"
            )
    try:
        yield lease
    finally:
        lease.release()


def take_lease(
    location: Location, number: int, holder_here: Holder, previous: Holder | None
) -> Lease | None:
    """Create the next lease file.

    Args:
        number: one more than that of ``previous``.
        previous: holder of the expired lease that was read before; None if there was none.

    Returns:
        None if another process created the file first, or the leases changed meanwhile.
    """
    if not location.create(_name(number), _text(holder_here)):
        return None
    numbers = _numbers(location)
    overtaken = max(numbers, default=0) != number
    before = _read(location, number - 1) if previous is not None else None
    vanished = previous is not None and (before is None or before.key != previous.key)
    if overtaken or vanished:  # the lease changed after it was read
        location.remove(_name(number))
        return None
    holders = (_read(location, earlier) for earlier in sorted(numbers) if earlier < number)
    return Lease(
        location, number, holder_here, tuple(holder for holder in holders if holder is not None)
    )


def _stopped(location: Location, number: int, holder: Holder, deadline: float) -> bool:
    """Whether a lease got no new heartbeat for `STALE_S`.

    False as soon as the lease is gone, its process is known to have ended, or a heartbeat arrives
    after the deadline.
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
    """Holder of a numbered lease; None if it was released or is not completely written yet."""
    try:
        return Holder(**json.loads(location.read_text(_name(number))))
    except (LdmprobeError, ValueError, TypeError):
        return None


def _host() -> str:
    """Host name, boot id and process namespace: several machines may share a host name."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def _process_start_time(pid: int) -> float:
    """Start time of a process in ticks since boot, which setting the clock does not change.

    Without /proc it is seconds since the epoch.

    Raises:
        psutil.NoSuchProcess: no process has this id.
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(pid).create_time()
