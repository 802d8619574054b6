"""Tests that the supervisor restarts and stops processes."""

from __future__ import annotations

from infra import services
from infra.supervisor import Supervisor


def test_supervisor_restarts_a_service_and_stops_all(tmp_path):
    """The service counts its own starts in a file, and ends at once after the first two."""
    starts = tmp_path / "starts"
    script = (
        f"echo >> {starts}; [ $(wc -l < {starts}) -lt 3 ] && exit 3; trap 'exit 0' TERM; "
        "while true; do read -t 0.1 < /dev/zero; done"
    )
    said = []
    supervisor = Supervisor(tmp_path, said.append)
    service = services.Service(
        "counter", ("bash", "-c", script),
        lambda: starts.exists() and len(starts.read_text().splitlines()) >= 3,
    )  # fmt: skip
    supervisor.start(service)

    def until_well():
        import threading
        import time

        deadline = time.monotonic() + 60
        while not service.is_well() and time.monotonic() < deadline:
            threading.Event().wait(0.05)  # polling, bounded by the deadline
        process = supervisor.running["counter"][1]
        supervisor.stop()
        return process

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(until_well)
        supervisor.watch()
        assert last.result(60).poll() is not None
    assert said == ["counter ended (3) and is started again"] * 2
    assert len(starts.read_text().splitlines()) == 3
