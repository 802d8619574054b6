"""Leases that cannot be read or listed: whether a process holds them is not known."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease, holder_of
from ldmprobe_core.storage.lifecycle.lease_files import UNKNOWN, UnreadableLeaseError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "STALE_S", 1.0)
    monkeypatch.setattr(leases, "READ_PATIENCE_S", 0.5)


def test_holder_of_a_lease_that_cannot_be_read_is_unknown_while_it_has_heartbeats(tmp_path):
    url = str(tmp_path / "run")
    path = Path(f"{url}.lease/000001")
    Location(f"{url}.lease").write_text("000001", "{")
    assert holder_of(url) == UNKNOWN
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert holder_of(url) is None


def test_lease_that_cannot_be_read_is_not_taken_over_while_it_has_heartbeats(tmp_path):
    url, over, waited = str(tmp_path / "run"), threading.Event(), []
    location = Location(f"{url}.lease")
    location.write_text("000001", "{")

    def heartbeat() -> None:
        while not over.wait(0.1):
            location.write_text("000001", "{")

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match=r"lease cannot be read \(.*/000001\)\. Fix: "),
            hold_lease(url, "next", patience_s=1.5, on_wait=waited.append),
        ):
            pass
    finally:
        over.set()
        thread.join()
    assert location.files() == ["000001"]
    assert waited
    assert set(waited) == {UNKNOWN}


def test_lease_is_not_lost_while_its_own_file_cannot_be_read(tmp_path, monkeypatch):
    """A file of this number stays the same process's unless another has written a new one."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 1e6)
    url = str(tmp_path / "run")
    with hold_lease(url, "me") as lease:
        location = Location(f"{url}.lease")
        whole = location.read_text("000001")
        location.write_text("000001", "")
        with pytest.raises(UnreadableLeaseError, match=r"lease cannot be read .*\. Fix: correct"):
            lease.require_held()
        assert not lease.lost
        location.write_text("000001", whole)
        lease.require_held()
    assert not Path(f"{url}.lease").exists()


def test_holder_is_not_called_absent_while_the_folder_of_the_lease_cannot_be_listed(
    tmp_path, monkeypatch
):
    url = str(tmp_path / "run")
    with hold_lease(url, "me"):
        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", _refuse)
            patched.setattr(os, "listdir", _refuse)
            with pytest.raises(UnreadableLeaseError, match=r"cannot be listed, .*\. Fix: correct"):
                holder_of(url)
        assert holder_of(url) is not None


def _refuse(*_: object) -> None:
    raise PermissionError("not for this user")
