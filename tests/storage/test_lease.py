"""Leases: one holder at a time when processes end, are suspended or compete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease, holder_of
from ldmprobe_core.storage.lifecycle.lease_files import Holder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "STALE_S", 1.0)
    monkeypatch.setattr(leases, "READ_PATIENCE_S", 0.5)


def write_lease(url: str, number: int, holder: Holder) -> None:
    location = Location(f"{url}.lease")
    assert location.create(f"{number:06d}", json.dumps(vars(holder)))


def elsewhere(heartbeat: int = 0) -> Holder:
    return Holder("k", "flow run 1", "another-machine/1", 77, 0.0, heartbeat)


def test_lease_has_one_holder_among_threads(tmp_path):
    inside, most, entries = 0, 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most, entries
        with hold_lease(str(tmp_path / "run"), "a thread", patience_s=60):
            with lock:
                inside += 1
                entries += 1
                most = max(most, inside)
            time.sleep(0.01)  # some work, during which others try
            with lock:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    assert (most, entries) == (1, 12)
    assert not (tmp_path / "run.lease").exists()


def test_hold_lease_names_a_living_holder(tmp_path):
    url = str(tmp_path / "run")
    with (
        hold_lease(url, "flow run first"),
        pytest.raises(UserError, match="flow run first") as told,
        hold_lease(url, "flow run second"),
    ):
        pass
    assert "wait until that process ends" in str(told.value)
    with hold_lease(url, "flow run second") as lease:
        assert lease.previous == ()


def test_hold_lease_calls_on_wait_until_the_holder_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "STALE_S", 600.0)  # also if the holder's thread is starved
    url, waited = str(tmp_path / "run"), []
    with ExitStack() as first:
        first.enter_context(hold_lease(url, "flow run first"))

        def on_wait(holder):
            waited.append(holder.description)
            if len(waited) == 3:
                first.close()

        with hold_lease(url, "flow run second", patience_s=1e9, on_wait=on_wait) as lease:
            assert lease.previous == ()
    assert set(waited) == {"flow run first"}
    assert len(waited) >= 3


def test_hold_lease_takes_a_lease_that_is_released_while_it_is_watched(tmp_path, monkeypatch):
    """The lease is taken even with a patience of zero, since no process holds it any more."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 1e6)
    monkeypatch.setattr(leases, "STALE_S", 1e6)
    url, watches = str(tmp_path / "run"), []
    with ExitStack() as first:
        first.enter_context(hold_lease(url, "flow run first"))
        pause = SimpleNamespace(
            monotonic=time.monotonic, sleep=lambda _: watches.append(first.close())
        )
        monkeypatch.setattr(leases, "time", pause)
        with hold_lease(url, "flow run second") as lease:
            assert lease.previous == ()
            assert len(watches) == 1


def test_hold_lease_that_has_waited_for_its_limit_names_holder_and_remedy(tmp_path, monkeypatch):
    """The clock of the waiting process jumps by 1000 s whenever it has seen a heartbeat."""
    monkeypatch.setattr(leases, "STALE_S", 1e6)  # longer than the jumps
    url, late, waited = str(tmp_path / "run"), [0.0], []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0], sleep=time.sleep)

    def on_wait(holder):
        waited.append(holder)
        late[0] += 1000.0

    with hold_lease(url, "flow run first"):
        monkeypatch.setattr(leases, "time", clock)
        with (
            pytest.raises(UserError, match=r"worked on by flow run first .*Fix: wait longer$"),
            hold_lease(url, "second", patience_s=1500, on_wait=on_wait, remedy="wait longer"),
        ):
            pass
    assert len(waited) == 2


def test_lease_of_a_process_killed_on_this_machine_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "STALE_S", 1e9)  # not by waiting
    url = str(tmp_path / "run")
    script = (
        "import sys, time\n"
        "from ldmprobe_core.storage.lease import hold_lease\n"
        "with hold_lease(sys.argv[1], 'flow run dead'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with hold_lease(url, "flow run next") as lease:
        assert [holder.description for holder in lease.previous] == ["flow run dead"]
        assert Location(f"{url}.lease").files() == ["000001", "000002"]
    assert not (tmp_path / "run.lease").exists()


def test_holder_is_dead_when_its_pid_belongs_to_another_process():
    holder_here = Holder.here("me")
    assert not holder_here.is_dead
    assert replace(holder_here, started_at=holder_here.started_at - 100).is_dead
    assert not replace(
        holder_here, started_at=holder_here.started_at - 100, host="another/1"
    ).is_dead  # cannot be known


def test_lease_of_a_silent_remote_holder_is_taken_over_after_stale_s(tmp_path):
    url = str(tmp_path / "run")
    write_lease(url, 7, elsewhere())
    started = time.monotonic()
    with hold_lease(url, "next") as lease:
        assert time.monotonic() - started >= 1.0
        assert lease.previous == (elsewhere(),)
        assert Location(f"{url}.lease").files() == ["000007", "000008"]


def test_lease_previous_lists_every_dead_holder(tmp_path):
    url = str(tmp_path / "run")
    older = replace(elsewhere(), key="older", description="flow run 0")
    write_lease(url, 6, older)  # its successor was killed before it reported this one
    write_lease(url, 7, elsewhere())
    with hold_lease(url, "next") as lease:
        assert lease.previous == (older, elsewhere())
    assert Location(f"{url}.lease").files() == []


def test_lease_of_a_remote_holder_with_heartbeats_is_not_taken_over(tmp_path):
    url, over = str(tmp_path / "run"), threading.Event()
    write_lease(url, 1, elsewhere())

    def heartbeat() -> None:
        count = 0
        while not over.wait(0.1):
            count += 1
            text = json.dumps(vars(elsewhere(count)))
            Location(f"{url}.lease").write_text("000001", text)

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match="another-machine"),
            hold_lease(url, "next", patience_s=2.0),
        ):
            pass
    finally:
        over.set()
        thread.join()


def test_require_held_fails_after_a_takeover(tmp_path):
    url, told = str(tmp_path / "run"), threading.Event()
    with hold_lease(url, "sleeper", on_lost=told.set) as lease:
        lease.require_held()
        assert not told.is_set()
        write_lease(url, 2, elsewhere())  # a takeover
        deadline = time.monotonic() + 20
        while not lease.lost:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polling for its next beat, bounded by the deadline
        with pytest.raises(RunError, match="taken over"):
            lease.require_held()
        assert told.wait(20)
    assert Location(f"{url}.lease").files() == ["000001", "000002"]  # not its own to remove


def test_require_held_fails_after_other_holders_came_and_went(tmp_path, monkeypatch):
    """Numbers begin at 1 again after a release, so the key identifies the holder of a file."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 1e6)  # a sleeping process has no heartbeat
    url = str(tmp_path / "run")
    with hold_lease(url, "sleeper") as lease:
        Location(f"{url}.lease").remove("000001")
        with pytest.raises(RunError, match="taken over"):
            lease.require_held()
    with hold_lease(url, "sleeper") as lease:
        Location(f"{url}.lease").remove("000001")
        write_lease(url, 1, elsewhere())
        with pytest.raises(RunError, match="taken over"):
            lease.require_held()
    assert Location(f"{url}.lease").files() == ["000001"]  # another's, and it stays
    holder_here = Holder.here("late")
    assert (
        leases.take_lease(
            Location(f"{url}.lease"), 2, holder_here, replace(elsewhere(), key="older")
        )
        is None
    )


WRONG_TYPES = json.dumps(
    {"key": "k", "description": None, "host": "h", "pid": "x", "started_at": None, "heartbeat": 1}
)
NEGATIVE_PID = json.dumps(vars(Holder("k", "d", leases.this_host(), -1, 0.0)))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": "k"}', WRONG_TYPES, NEGATIVE_PID])
def test_lease_file_that_is_not_valid_is_taken_over_after_stale_s(tmp_path, content):
    location = Location(f"{tmp_path}/run.lease")
    location.write_text("000003", content)
    started = time.monotonic()
    with hold_lease(str(tmp_path / "run"), "next") as lease:
        assert time.monotonic() - started >= 1.0
        lease.require_held()
    assert location.files() == []


def test_late_lease_file_with_an_outdated_number_is_removed(tmp_path):
    location = Location(str(tmp_path / "run.lease"))
    holder_here, dead = Holder.here("late"), elsewhere()
    write_lease(
        str(tmp_path / "run"), 9, elsewhere()
    )  # other processes went from 3 to 9 during a suspend
    assert leases.take_lease(location, 4, holder_here, dead) is None
    assert location.files() == ["000009"]
    location.remove("000009")  # or all were released, and numbers begin at 1 again
    assert leases.take_lease(location, 4, holder_here, dead) is None
    assert location.files() == []


def test_hold_lease_pauses_and_ends_on_a_store_that_keeps_nothing(tmp_path, monkeypatch):
    """Without a listing of the new file, every try looks like a lost race."""
    tries, pauses = [], []
    monkeypatch.setattr(Location, "create", lambda self, name, text: tries.append(name) or True)
    with (
        pytest.raises(RunError, match=r"could not be taken in 30 tries\. Fix: "),
        hold_lease(str(tmp_path / "run"), "unlucky", sleep=pauses.append),
    ):
        pass
    assert len(tries) == 30
    assert len(pauses) == 29
    assert min(pauses) >= 0.05
    assert max(pauses) <= 2.0


def test_hold_lease_pauses_and_ends_after_losing_every_race(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(Location, "create", lambda self, name, text: False)
    with (
        pytest.raises(RunError, match="could not be taken"),
        hold_lease(str(tmp_path / "run"), "late", patience_s=1e9, sleep=pauses.append),
    ):
        pass
    assert len(pauses) == 29


def test_abandoned_lease_is_passed_on_with_its_holder(tmp_path, monkeypatch):
    url = str(tmp_path / "run")
    with hold_lease(url, "first") as lease:
        lease.abandon()
    monkeypatch.setattr(Holder, "is_dead", property(lambda holder: holder.description == "first"))
    with hold_lease(url, "second") as lease:
        lease.require_held()
        assert [holder.description for holder in lease.previous] == ["first"]
    with hold_lease(url, "third") as lease:
        assert lease.previous == ()


def test_holder_of_a_lease_that_is_released_meanwhile_is_none(tmp_path, monkeypatch):
    """The file of a holder on another machine vanishes after it was read."""
    url = str(tmp_path / "run")
    write_lease(url, 1, elsewhere())
    assert holder_of(url) is not None
    modified = Location.modified

    def released(location, name):
        location.remove("000001")
        return modified(location, name)

    monkeypatch.setattr(Location, "modified", released)
    assert holder_of(url) is None


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("written", [1e9, 4e9], ids=["clock ahead", "clock behind"])
def test_holder_of_watches_a_holder_of_another_time(tmp_path, monkeypatch, alive, written):
    """The clock of this machine is far from the store's, so no heartbeat looks recent."""
    url, location = str(tmp_path / "run"), Location(f"{tmp_path}/run.lease")
    write_lease(url, 1, elsewhere())
    os.utime(tmp_path / "run.lease/000001", (written, written))

    def beat(_: float) -> None:
        if alive:
            location.write_text("000001", json.dumps(vars(elsewhere(1))))
            os.utime(tmp_path / "run.lease/000001", (written + 5, written + 5))
        now[0] += 0.4

    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=beat)
    monkeypatch.setattr(leases, "time", clock)
    assert holder_of(url) is None
    assert holder_of(url, lambda holder: holder.description != "flow run 1") is None
    assert now == [0.0]
    found = holder_of(url, lambda holder: holder.description == "flow run 1")
    assert found == (elsewhere() if alive else None)
    assert now == [0.4 if alive else pytest.approx(1.2)]


class Later:
    """Replacement of a method of `Location` that runs a function before its call of that number."""

    def __init__(self, method, number, function):
        self.method, self.left, self.function = method, number, function

    def __get__(self, location, _):
        def call(*arguments):
            self.left -= 1
            if self.left == 0:
                self.function()
            return self.method(location, *arguments)

        return call


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_holder_of_waits_until_the_file_of_a_new_lease_is_complete(tmp_path, monkeypatch, content):
    """Without hard links, a new lease is empty until its content replaces it."""
    url = str(tmp_path / "run")
    location = Location(f"{url}.lease")
    location.write_text("000001", content)
    complete = Later(
        Location.files, 3, lambda: location.write_text("000001", json.dumps(vars(elsewhere())))
    )
    monkeypatch.setattr(Location, "files", complete)
    assert holder_of(url) == elsewhere()
    assert complete.left == 0


def test_holder_of_finds_the_lease_that_was_taken_after_a_release(tmp_path, monkeypatch):
    """A late process leaves number 9 for a moment, while another holds number 1."""
    url = str(tmp_path / "run")
    write_lease(url, 1, elsewhere())
    write_lease(url, 9, replace(elsewhere(), key="late"))
    client = Location.client
    gone = Later(client, 2, lambda: Path(f"{url}.lease/000009").unlink(missing_ok=True))
    monkeypatch.setattr(Location, "client", gone)  # between the listing and the reading
    assert holder_of(url) == elsewhere()
    assert gone.left <= 0


def test_take_lease_fails_if_an_unreadable_lease_has_become_valid(tmp_path):
    location = Location(str(tmp_path / "run.lease"))
    write_lease(str(tmp_path / "run"), 3, elsewhere())  # it was unreadable when last looked at
    assert leases.take_lease(location, 4, Holder.here("late"), None) is None
    assert location.files() == ["000003"]
