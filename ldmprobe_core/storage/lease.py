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

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lifecycle.lease_files import (
    UNKNOWN,
    Holder,
    UnreadableLeaseError,
    lease_name,
    lease_numbers,
    lease_text,
    read_holder,
    read_holder_or_none,
    this_host,
    written_at,
)

HEARTBEAT_S = 5.0
STALE_S = 30.0

READ_PATIENCE_S = 1.0
"""Seconds for which a lease's file that cannot be read is read again, before that counts."""

MOST_RACES = 30
"""Largest number of attempts to create the next lease; pauses between them grow to 2 seconds."""


class Lease:
    """Lease that this process holds; a thread writes heartbeats until `release` is called.

    The thread calls ``on_lost``, if it is given, when it finds that another process took over.

    Attributes:
        previous: earlier holders whose leases expired, oldest first; several if one of them ended
            before it could report the one before.
        lost: whether another process has taken over the lease.
    """

    def __init__(
        self,
        location: Location,
        number: int,
        holder: Holder,
        previous: tuple[Holder, ...],
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self.previous, self._on_lost = previous, on_lost
        self._location, self._number, self._holder = location, number, holder
        self.lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Check that this process still holds the lease; a suspended process can lose it.

        Raises:
            RunError: another process holds the lease, or has held it in the meantime.
            UnreadableLeaseError: the lease's file cannot be read, so its holder is not known.
        """
        if not _patiently(self._is_mine):
            self.lost = True
        if self.lost:
            raise RunError(
                f"{self._location.url.removesuffix('.lease')} was taken over by another process "
                "while this process was suspended. Fix: wait until the other process has finished, "
                "then repeat the command"
            )

    def _is_mine(self) -> bool:
        """Return whether this lease is the newest, and its file still names this process.

        Raises:
            UnreadableLeaseError: the file cannot be read; another process may have written it.
        """
        # A process that comes late creates a higher number for a moment, and removes it when it
        # finds that this lease is alive.
        deadline = time.monotonic() + READ_PATIENCE_S
        while (newest := max(lease_numbers(self._location), default=0)) > self._number:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        if newest != self._number:
            return False
        held_by = read_holder(self._location, self._number)
        return held_by is not None and held_by.key == self._holder.key

    def _keep_alive(self) -> None:
        """Run the heartbeat thread: rewrite the lease's file at intervals until it is released."""
        while not self._released.wait(HEARTBEAT_S):
            self._holder = replace(self._holder, heartbeat=self._holder.heartbeat + 1)
            # If the store cannot be reached, or the file cannot be read, for a moment, this
            # heartbeat is lost.  The thread must not end because of that, so errors are ignored and
            # the next heartbeat is tried.
            with suppress(Exception):
                if not self._is_mine():
                    self.lost = True
                    if self._on_lost is not None:
                        self._on_lost()
                    return
                self._location.write_text(lease_name(self._number), lease_text(self._holder))

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
                for number in sorted(lease_numbers(self._location)):
                    self._location.remove(lease_name(number))
                if not self._location.remote:
                    os.rmdir(self._location.url)


@contextmanager
def hold_lease(
    url: str,
    description: str,
    patience_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[Holder], None] | None = None,
    remedy: str = "wait until that process ends, or stop it",
    on_lost: Callable[[], object] | None = None,
) -> Iterator[Lease]:
    """Hold the lease of a run during a ``with`` block; other processes wait or fail meanwhile.

    Args:
        url: URL of the run; the lease's files are in a folder beside the run.
        description: name of this process in the messages of other processes.
        patience_s: longest time in seconds to wait for a holder that is alive.
        sleep: function that pauses between two attempts, given seconds.
        on_wait: function that is called at every heartbeat of a holder that is waited for, with
            `UNKNOWN` for a holder that cannot be read; an exception from it ends the wait.
        remedy: what the message of the UserError says after ``Fix:``.
        on_lost: function that a thread of this process calls at the first heartbeat after another
            process took the lease over, which it does if this process was suspended.

    Raises:
        UserError: another process that is alive holds the lease.
        UnreadableLeaseError: this user cannot list the lease's files.
        RunError: the lease could not be created in `MOST_RACES` attempts.
    """
    location, holder_here = Location(f"{url.rstrip('/')}.lease"), Holder.here(description)
    deadline = time.monotonic() + patience_s
    lease, lost_races = None, 0
    while lease is None:
        number = max(lease_numbers(location), default=0)
        held_by = read_holder_or_none(location, number) if number else None
        if number and held_by is None:
            unreadable = _stays_unreadable(location, number, deadline, sleep, on_wait, remedy)
            if not unreadable:
                continue
        # With a deadline that has passed, `_stopped` returns at each heartbeat, so that `on_wait`
        # is called.
        until = deadline if on_wait is None else time.monotonic()
        if held_by is None or held_by.is_dead or _stopped(location, number, held_by, until):
            lease = take_lease(location, number + 1, holder_here, held_by, on_lost)
            if lease is None:
                lost_races += 1
                _pause_after_race(url, lost_races, sleep)
        elif time.monotonic() >= deadline:
            now = read_holder_or_none(location, number)
            if now is None or now.is_dead:
                # The holder released the lease, or ended, while it was watched.
                continue
            raise UserError(
                f"{url} is being worked on by {held_by.description} (process {held_by.pid} on "
                f"{held_by.host.partition('/')[0]}). Fix: {remedy}"
            )
        elif on_wait is not None:
            on_wait(held_by)
    try:
        yield lease
    finally:
        lease.release()


def _pause_after_race(url: str, lost: int, sleep: Callable[[float], None]) -> None:
    """Pause after another process took the lease first, longer the more races were lost.

    Raises:
        RunError: `MOST_RACES` were lost.
    """
    if lost >= MOST_RACES:
        raise RunError(
            f"{url}: the lease could not be taken in {MOST_RACES} tries. Fix: check that the store "
            "keeps the files that are written to it, then repeat the command"
        )
    sleep(min(0.05 * 2**lost, 2.0) * random.uniform(0.5, 1.0))


def holder_of(url: str, watch: Callable[[Holder], bool] | None = None) -> Holder | None:
    """Return the process that holds the lease of a run; None if no process does.

    A holder on another machine counts until it has written no heartbeat for `STALE_S` seconds, by
    the clocks of this machine and of the store, which may differ.  So does a holder whose lease
    cannot be read, for example because its file belongs to another user: it is returned as
    `UNKNOWN`.

    Args:
        url: URL of the run.
        watch: function that returns whether to watch a holder, whose last heartbeat is old by the
            clocks, for `STALE_S` seconds, and to count it if a heartbeat arrives; None watches
            none.  Without a watch, the result is for display only.

    Raises:
        UnreadableLeaseError: this user cannot list the lease's files.
    """
    location, deadline = Location(f"{url.rstrip('/')}.lease"), time.monotonic() + READ_PATIENCE_S
    while number := max(lease_numbers(location), default=0):
        try:
            # A file that is missing was released after it was listed.  Another process may hold the
            # lease by now, so the files are listed again.
            if (holder := read_holder(location, number)) is None:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.02)
                continue
        except UnreadableLeaseError:
            if time.monotonic() <= deadline:
                time.sleep(0.02)
                continue
            holder = UNKNOWN
        if holder.is_dead:
            return None
        if holder.host != this_host():
            written = written_at(location, number)
            if written is None:
                continue
            if abs((datetime.now(UTC) - written).total_seconds()) > STALE_S:
                if watch is None or not watch(holder):
                    return None
                if (again := _next_write(location, number, written)) is None:
                    deadline = time.monotonic() + READ_PATIENCE_S
                    continue
                if again == written:
                    return None
        return holder
    return None


def _next_write(location: Location, number: int, written: datetime) -> datetime | None:
    """Watch a lease's file for `STALE_S` seconds, and return when it is written next.

    Args:
        written: time of the last write, which is returned if no other follows.

    Returns:
        None as soon as the file does not exist.
    """
    since = time.monotonic()
    while (now := written_at(location, number)) == written and time.monotonic() - since < STALE_S:
        time.sleep(0.2)
    return now


def take_lease(
    location: Location,
    number: int,
    holder_here: Holder,
    previous: Holder | None,
    on_lost: Callable[[], object] | None = None,
) -> Lease | None:
    """Acquire a lease that is absent or expired, by creating the file with the next number.

    Args:
        number: number of the new lease, one more than that of ``previous``.
        previous: holder of the expired lease, as read before; None if there was no lease.
        on_lost: as in `hold_lease`.

    Returns:
        the lease; None if another process was first, or if the files have changed since the
        expired lease was read.
    """
    if not location.create(lease_name(number), lease_text(holder_here)):
        return None
    numbers = lease_numbers(location)
    overtaken = max(numbers, default=0) != number
    before = read_holder_or_none(location, number - 1)
    vanished = _key_of(before) != _key_of(previous)
    if overtaken or vanished:
        # Since the expired lease was read, another process has taken or released a lease.  This
        # process therefore must not hold the new lease, and removes the file that it has created.
        location.remove(lease_name(number))
        return None
    holders = [
        read_holder_or_none(location, earlier) for earlier in sorted(numbers) if earlier < number
    ]
    expired = tuple(holder for holder in holders if holder is not None)
    return Lease(location, number, holder_here, expired, on_lost)


def _key_of(holder: Holder | None) -> str | None:
    return None if holder is None else holder.key


def _stopped(location: Location, number: int, holder: Holder, deadline: float) -> bool:
    """Watch a lease, and return True if no heartbeat arrives for `STALE_S` seconds.

    Returns False early if the lease disappears, if its process is known to have ended, or if a
    heartbeat arrives after the deadline; the caller then reads the lease again.
    """
    since = time.monotonic()
    while time.monotonic() - since < STALE_S:
        time.sleep(0.2)
        now = read_holder_or_none(location, number)
        if now is None or holder.is_dead:
            return False
        if now.heartbeat != holder.heartbeat:
            holder, since = now, time.monotonic()
            if since >= deadline:
                return False
    return True


def _stays_unreadable(
    location: Location,
    number: int,
    deadline: float,
    sleep: Callable[[float], None],
    on_wait: Callable[[Holder], None] | None,
    remedy: str,
) -> bool:
    """Watch a lease without a valid file, and return True if it stays so for `STALE_S` seconds.

    The file is missing because it was just released, or it is not complete after a power failure,
    or this user may not read it.  In the last case, heartbeats show in the times of its writes.

    Returns:
        False as soon as the file is valid, or is not the newest.

    Raises:
        UserError: the lease has heartbeats after the deadline.
    """
    since, written, beats = time.monotonic(), written_at(location, number), 0
    while time.monotonic() - since < STALE_S:
        sleep(0.1)
        if (
            read_holder_or_none(location, number)
            or max(lease_numbers(location), default=0) != number
        ):
            return False
        before, written = written, written_at(location, number)
        if written != before:
            since, beats = time.monotonic(), beats + 1
            # The first change may be that the file of a new lease has just been completed.
            if since >= deadline and beats > 1:
                raise UserError(
                    f"{location.url.removesuffix('.lease')} is being worked on by "
                    f"{UNKNOWN.description} ({location.url}/{lease_name(number)}). Fix: {remedy}, "
                    "or correct the permissions of its lease"
                )
            if on_wait is not None:
                on_wait(UNKNOWN)
    return True


def _patiently(read: Callable[[], bool]) -> bool:
    """Call a function until it can read a lease, for at most `READ_PATIENCE_S` seconds."""
    deadline = time.monotonic() + READ_PATIENCE_S
    while True:
        try:
            return read()
        except UnreadableLeaseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
