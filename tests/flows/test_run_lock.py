"""Lock of a run during a flow: flows that are suspended, replaced meanwhile, or resumed."""

import os
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from flows import run_lock
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lifecycle.lease_files import Holder, lease_name, lease_text
from tasks.stopping import StoppedError, requested_stop, require_not_stopped, stoppable


def test_a_flow_that_was_replaced_while_it_was_suspended_starts_no_other_unit(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "READ_PATIENCE_S", 0.2)
    flow_run = SimpleNamespace(flow_run=SimpleNamespace(id="of-a-test"))
    monkeypatch.setattr(run_lock, "runtime", flow_run)
    monkeypatch.setattr(run_lock, "PauseWatch", lambda _: nullcontext())
    url = str(tmp_path / "run")
    with stoppable():
        with run_lock.hold_run(url):
            require_not_stopped()
            other = Holder("k", "flow run 2", "another-machine/1", 77, 0.0)
            Location(f"{url}.lease").write_text(lease_name(2), lease_text(other))
            deadline = time.monotonic() + 60
            while requested_stop() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)  # polling for the next heartbeat, bounded by the deadline
            with pytest.raises(StoppedError, match="was taken over by another process") as error:
                require_not_stopped()
        assert error.value.exit_code == 3
        assert not requested_stop().cancels  # the flow run of the new process goes on
        assert capfd.readouterr().err.count("was taken over") == 1
    assert Location(f"{url}.lease").files() == ["000001", "000002"]


@pytest.mark.parametrize("written", [1e9, 4e9], ids=["clock ahead", "clock behind"])
@pytest.mark.parametrize(("holder", "patience"), [("of-a-test", 900.0), ("of-another", 0.0)])
def test_a_resumed_flow_waits_for_its_earlier_process_by_any_clock(
    tmp_path, monkeypatch, written, holder, patience
):
    """The clock of this machine is far from the store's, so no heartbeat looks recent."""
    given = []

    def hold_lease(url, who, patience_s, **_):
        given.append((who, patience_s))
        return nullcontext(SimpleNamespace(previous=()))

    flow_run = SimpleNamespace(flow_run=SimpleNamespace(id="of-a-test"))
    monkeypatch.setattr(run_lock, "runtime", flow_run)
    monkeypatch.setattr(run_lock, "PauseWatch", lambda _: nullcontext())
    monkeypatch.setattr(run_lock, "hold_lease", hold_lease)
    url = str(tmp_path / "run")
    earlier = Holder("k", f"flow run {holder}", "another-machine/1", 77, 0.0)
    Location(f"{url}.lease").write_text(lease_name(3), lease_text(earlier))
    os.utime(f"{url}.lease/{lease_name(3)}", (written, written))
    with run_lock.hold_run(url):
        pass
    assert given == [("flow run of-a-test", patience)]
