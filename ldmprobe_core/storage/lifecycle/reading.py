"""Leases of processes that read runs, which keep retention from deleting these runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease, holder_of
from ldmprobe_core.storage.lifecycle.lease_files import UNKNOWN, Holder, lease_numbers

PRUNER = "ldmprobe prune"
"""Name under which retention holds the lease of a run while it deletes from it."""

READER_SUFFIX = ".reading-"
"""Text between a run's name and the number of a reader in the name of the reader's lease."""

_MOST_READERS = 256


@contextmanager
def reading(reader: str, *urls: str) -> Iterator[None]:
    """Keep retention from deleting runs while a block of code reads them.

    Each reader gets a lease of its own beside each run, ``<run>.reading-<number>.lease``, even
    while a flow works on the run.  In a store that cannot be written to, runs are read without it.

    Args:
        reader: name of the reading process in the messages of retention.
        urls: addresses of the runs.

    Raises:
        UserError: a run is being deleted, or might be.
    """
    with ExitStack() as leases:
        for url in urls:
            address = url.rstrip("/")
            if not _enter_lease(leases, address, reader):
                continue
            # Retention takes the run's lease before it looks for leases of readers.  This process
            # has taken its reader's lease before it looks for the run's lease.  So at least one of
            # the two processes sees the lease of the other.
            holder = holder_of(address, _may_delete)
            if holder is not None and holder.description == PRUNER:
                raise UserError(
                    f"{url}: {PRUNER} is deleting from this run. Fix: wait until it has ended, and "
                    "check what is left of the run"
                )
            if holder == UNKNOWN:
                raise UserError(
                    f"{url}: {holder.description} works on this run, and may be deleting it "
                    f"({address}.lease). Fix: wait until that process ends, or correct the "
                    "permissions of its lease"
                )
        yield


def _may_delete(holder: Holder) -> bool:
    """Return whether the holder of a run's lease is retention, or may be."""
    return holder == UNKNOWN or holder.description == PRUNER


def _enter_lease(leases: ExitStack, address: str, reader: str) -> bool:
    """Take a run's reader lease with the lowest free number; return False if none can be taken.

    Numbers are used again, since some object stores keep the empty folder of a released lease.
    """
    for number in range(1, _MOST_READERS + 1):
        url = f"{address}{READER_SUFFIX}{number}"
        if _taken(url):
            continue
        try:
            leases.enter_context(hold_lease(url, reader, patience_s=1.0))
            return True
        except (UserError, OSError):
            # Another reader has taken this number, or the store cannot be written to.
            if not _taken(url):
                return False
    return False


def _taken(url: str) -> bool:
    """Return whether a reader's lease has a file, even if the process that wrote it was killed."""
    return bool(lease_numbers(Location(f"{url}.lease")))
