"""Numbered files of leases, and the records in them of the processes that hold a lease.

`ldmprobe_core.storage.lease` says what the numbers mean.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter

from ldmprobe_core.errors import RunError
from ldmprobe_core.storage.filesystem import Location


class UnreadableLeaseError(RunError):
    """Error for a lease whose file exists and has no valid content, or must not be read."""


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
    pid: Annotated[int, Field(ge=0)]
    started_at: float
    heartbeat: int = 0

    @classmethod
    def here(cls, description: str) -> Holder:
        """Build the holder record of the current process."""
        return cls(
            uuid.uuid4().hex,
            description,
            this_host(),
            os.getpid(),
            _process_start_time(os.getpid()),
        )

    @property
    def is_dead(self) -> bool:
        """Flag that is True if the holder has ended; False for a process on another machine."""
        if self.host != this_host():
            return False
        try:
            return _process_start_time(self.pid) != self.started_at
        except psutil.NoSuchProcess:
            return True


UNKNOWN = Holder("", "a process whose lease cannot be read", "", 0, 0.0)
"""Holder of a lease whose file has heartbeats, but no content that this process can read."""


def lease_numbers(location: Location) -> set[int]:
    """Return the numbers of all lease files.

    Raises:
        UnreadableLeaseError: this user cannot list the folder of the lease.
    """
    try:
        return {int(name) for name in location.files() if name.isdecimal()}
    except PermissionError as error:
        raise UnreadableLeaseError(
            f"{location.url}: the folder of the lease cannot be listed, so whether a process works "
            "on the run is not known (PermissionError). Fix: correct the permissions of the folder"
        ) from error


def lease_name(number: int) -> str:
    """Return the file name of the lease with the given number."""
    return f"{number:06d}"


def lease_text(holder: Holder) -> str:
    """Serialise the holder of a lease as JSON, the content of the lease's file."""
    return json.dumps(asdict(holder))


def read_holder(location: Location, number: int) -> Holder | None:
    """Read the holder of a numbered lease; None if the file is missing.

    Raises:
        UnreadableLeaseError: the file exists, and is not complete or must not be read.
    """
    name = lease_name(number)
    try:
        text = location.client().read(name).decode()
        return TypeAdapter(Holder).validate_json(text, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (RunError, PermissionError, ValueError, TypeError) as error:
        raise UnreadableLeaseError(
            f"{location.url}/{name}: the lease cannot be read ({type(error).__name__}). Fix: "
            "correct the permissions of the file, or remove it if no process works on the run"
        ) from error


def read_holder_or_none(location: Location, number: int) -> Holder | None:
    """Read the holder of a numbered lease; None if its file is missing or cannot be read."""
    try:
        return read_holder(location, number)
    except UnreadableLeaseError:
        return None


def last_holder(url: str) -> Holder | None:
    """Read the holder of a run's newest lease, alive or not; None if no lease can be read.

    Raises:
        UnreadableLeaseError: this user cannot list the folder of the lease.
    """
    location = Location(f"{url.rstrip('/')}.lease")
    number = max(lease_numbers(location), default=0)
    return read_holder_or_none(location, number) if number else None


def this_host() -> str:
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


def written_at(location: Location, number: int) -> datetime | None:
    """Return when a lease's file was last written; None if it does not exist."""
    try:
        return location.modified(lease_name(number))
    except FileNotFoundError:
        return None
