"""Tests of the whole platform on one machine, with real services that are also killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
import s3fs
from distributed import Client
from faults import Faults, proxy
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Suspended
from run_helpers import assert_same, carry_out, small_study

from flows.run_lock import task_runs
from infra.services import postgres_program
from infra.stack import free_ports
from ldmprobe_core.interventions.results import completed_interventions, read_intervention_summary
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("postgres") is None
        and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        and "LDMPROBE_STACK_REQUIRED" not in os.environ,
        reason="needs PostgreSQL; .ci/run installs it and insists",
    ),
]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


HOSTILE = [
    "<script>document.title = 'owned'; alert(1)</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "../../../../etc/passwd",
    "{{ prefect.blocks.secret.anything }} {{ $HOME }}",
    '{"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}',
    "line one\nline two\ttab \x1b[31mred\x07",
    "'; DROP TABLE flow_run; --",
    "w" * 10_000,
    "\N{RIGHT-TO-LEFT OVERRIDE}drawkcab \N{PILE OF POO}",
]
"""Prompts that try to do harm; the platform has to show them as plain text."""


class Stack:
    """A running ``make stack``, and the text that it has printed."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.parent / "stack.log"
        self.start()

    def start(self) -> None:
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.stack", "--free-ports", "--data", str(self.data)],
                cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while "The stack is ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.3)  # polling for its start, bounded by the deadline
        lines = (self.data / "env").read_text().splitlines()
        self.env = dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def stop(self) -> list[psutil.Process]:
        """Stop the stack as a user does, and return those of its processes that are still alive."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        return psutil.wait_procs(children, timeout=10)[1]

    def service(self, name: str) -> psutil.Process:
        """Return the process of a service."""
        words = {
            "server": "server start", "postgres": "postgres -D", "nanny": "dask_worker",
            "scheduler": "dask_scheduler", "store": "weed server",
        }[name]  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            for process in psutil.Process(self.process.pid).children():
                try:
                    if words in " ".join(process.cmdline()):
                        return process
                except (psutil.ZombieProcess, psutil.NoSuchProcess):
                    continue  # just killed, and soon started again
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.1)  # polling for its restart, bounded by the deadline

    def wait_until_reachable(self) -> None:
        """Wait until the object store and the scheduler are back after they were killed."""
        deadline = time.monotonic() + 180
        for url in (f"{self.env['AWS_ENDPOINT_URL']}/healthz", self.env["LDMPROBE_DASK"]):
            address = urlsplit(url)
            while True:
                with suppress(OSError):
                    socket.create_connection((address.hostname, address.port), 5).close()
                    if address.scheme == "tcp" or httpx.get(url, timeout=5).is_success:
                        break
                assert time.monotonic() < deadline, f"{url} is not back"
                time.sleep(0.2)  # polling for its restart, bounded by the deadline

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | self.env | {"COLUMNS": "160"} | more


@pytest.fixture(scope="module")
def stack():
    folder = Path(tempfile.mkdtemp(prefix="ldmprobe-stack-"))
    # If we are root, PostgreSQL runs as another user, who has to enter this folder.
    folder.chmod(0o755)
    running = Stack(folder / "data")
    yield running
    if running.process.poll() is None:
        running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def connected(stack, monkeypatch):
    """Set the environment variables that make this process a client of the stack."""
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: stack.env["PREFECT_API_URL"]}):
        yield stack


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    """Return a study with some malicious prompts, and its run by a plain loop."""
    content = small_study("stacked", tiny_model, 22).model_dump(mode="json", by_alias=True)
    content["prompts"]["items"] = [*HOSTILE, "a red cube", "a dog"]
    study = parse_study(content)
    return study, carry_out(study, str(tmp_path_factory.mktemp("reference")))


def on_dask(study, stack):
    """Return parameters with which the study flow runs on the stack's workers."""
    content = study.model_dump(mode="json", by_alias=True)
    content["execution"] = {"runner": "dask", "address": stack.env["LDMPROBE_DASK"]}
    return content


def finished(client, flow_run_id, limit_s=180):
    deadline = time.monotonic() + limit_s
    while True:
        run = client.read_flow_run(flow_run_id)
        if run.state.is_final():
            return run
        assert time.monotonic() < deadline, run.state
        time.sleep(0.5)  # polling for its end, bounded by the deadline


def logs_of(client, flow_run_id):
    found = []
    which = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    while page := client.read_logs(log_filter=which, limit=200, offset=len(found)):
        found += [entry.message for entry in page]
    return found


@pytest.fixture(scope="module")
def scheduled(stack, reference):
    """Return a run of the same study that the schedule of a deployment started."""
    study, _ = reference
    with (
        temporary_settings({PREFECT_API_URL: stack.env["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        deployment = client.read_deployment_by_name("study/process")
        (nightly,) = deployment.schedules
        assert not nightly.active
        assert nightly.schedule.cron == "0 3 * * *"
        month, soon = timedelta(days=30), datetime.now(UTC) + timedelta(seconds=15)
        schedule = IntervalSchedule(interval=month, anchor_date=soon - month)
        # The deployment's own settings of scheduled runs would give the run another seed.
        parameters = {
            "study": on_dask(study, stack),
            "store": "s3://runs/scheduled",
            "schedule": None,
        }
        made = client._client.post(
            f"/deployments/{deployment.id}/schedules",
            json=[{
                "schedule": schedule.model_dump(mode="json"),
                "active": True,
                "parameters": parameters,
            }],
        ).raise_for_status()  # fmt: skip
        # Prefect's scheduler checks changed deployments every 5 seconds, and all every 60 seconds.
        touched = DeploymentUpdate(description=deployment.description)
        client.update_deployment(deployment.id, touched)
        deadline = time.monotonic() + 90
        while not (runs := [r for r in client.read_flow_runs() if r.auto_scheduled]):
            assert time.monotonic() < deadline
            time.sleep(0.5)  # polling for Prefect's scheduler, bounded by the deadline
        run = finished(client, min(runs, key=lambda r: r.expected_start_time).id)
        client.delete_deployment_schedule(deployment.id, UUID(made.json()[0]["id"]))
    return run


def test_a_scheduled_run_is_picked_up_and_gives_the_same_bytes(connected, reference, scheduled):
    study, plain = reference
    assert scheduled.state.is_completed(), scheduled.state.message
    assert scheduled.name == "study stacked"
    assert scheduled.work_pool_name == "ldmprobe"
    run = Run(f"s3://runs/scheduled/{study.run_name}")
    assert_same(plain, run)
    assert [sample.prompt for sample in run.samples][: len(HOSTILE)] == HOSTILE
    assert "<html" in run.location.read_text("report/index.html")
    scheduled_runs = Location("s3://runs/scheduled")
    top = {*scheduled_runs.folders(""), *scheduled_runs.files("")}
    # No prompt created a file of its own.  SeaweedFS keeps the empty folders of released leases.
    assert {name for name in top if not name.endswith(".lease")} == {study.run_name}

    with get_client(sync_client=True) as client:
        recorded = task_runs(client, scheduled.id)
        artifacts = [a for a in client.read_artifacts() if a.flow_run_id == scheduled.id]
        logs = logs_of(client, scheduled.id)
    assert all(t.state.is_completed() for t in recorded)
    names = sorted(t.name for t in recorded)
    assert len([n for n in names if n.startswith("batch ")]) == 6
    assert len([n for n in names if n.startswith("label ")]) == 6
    # At three steps: three layers, and the pixels of the step's predicted clean image.
    assert len([n for n in names if n.startswith("cell step ")]) == 3 * (3 + 1)
    assert len(names) == 6 + 6 + 12 + 2
    keys = {a.key for a in artifacts}
    assert {"best-cells-stacked", "summary-stacked", "report-stacked"} <= keys
    progress = {a.key: a for a in artifacts if a.key.startswith("progress-")}
    assert set(progress) == {f"progress-{stage}" for stage in ("generate", "label", "probe")}
    assert all(a.data == 100 for a in progress.values())
    assert "6 of 6" in progress["progress-generate"].description
    assert any(
        re.fullmatch(r"4 samples, \d+\.\d\d s, \d+\.\d MB, peak memory \d+\.\d\d GB", line)
        for line in logs
    )


def test_model_cache_loads_once_a_worker_process(connected, scheduled):
    with Client(connected.env["LDMPROBE_DASK"], set_as_default=False) as client:
        loads = client.run(lambda: dict(model_cache.load_counts))
    assert len(loads) == 2
    assert all(0 < count <= 1 for counts in loads.values() for count in counts.values())
    assert sum(counts["generator"] for counts in loads.values() if counts) >= 1


def test_deployment_parameters_have_the_study_schema(connected):
    with get_client(sync_client=True) as client:
        schema = client.read_deployment_by_name("study/process").parameter_openapi_schema
        assert {"study", "store"} <= schema["properties"].keys()
        execution = schema["definitions"]["Execution"]["properties"]
        assert {"runner", "address", "cluster", "workers", "gpus_per_worker"} <= execution.keys()
        deployment = client.read_deployment_by_name("study/process")
        mistake = {"study": {"name": "x", "sampling": {"steps": "many"}}}
        with pytest.raises(PrefectHTTPStatusError, match="many"):
            client.create_flow_run_from_deployment(deployment.id, parameters=mistake)


@pytest.mark.skipif(
    shutil.which("chromium") is None and "LDMPROBE_BROWSER_REQUIRED" not in os.environ,
    reason="needs Chromium; .ci/run installs it and insists",
)
def test_ui_page_of_a_run_shows_its_tasks(connected, scheduled, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    ui = connected.env["PREFECT_API_URL"].removesuffix("/api")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.on("dialog", lambda dialog: pytest.fail(f"a prompt was run: {dialog.message}"))
        page.goto(f"{ui}/runs/flow-run/{scheduled.id}?tab=Task+Runs")
        for name in ("study stacked", "batch 0005 · samples 20-21", "label 0000 · samples 0-3"):
            expect(page.get_by_text(name).first).to_be_visible(timeout=60_000)
        page.screenshot(path=str(tmp_path / "run.png"))
        page.goto(f"{ui}/runs/flow-run/{scheduled.id}?tab=Parameters")
        expect(page.get_by_text("onerror").first).to_be_visible(timeout=60_000)  # as text
        assert "owned" not in page.title()
        browser.close()
    assert (tmp_path / "run.png").stat().st_size > 20_000


def test_intervene_deployment_runs(connected, reference, scheduled):
    url = f"s3://runs/scheduled/{reference[0].run_name}"
    what = {"prop": "foreground", "targets": [{"dx": 0.25, "dy": 0.0}], "samples": 3,
            "layers": ["*"]}  # fmt: skip
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("intervene/process")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"url": url, "what": what}
        )
        done = finished(client, run.id)
    assert done.state.is_completed(), done.state.message
    run = Run(url)
    (name,) = completed_interventions(run)
    assert read_intervention_summary(run, name).pairs == 3
    assert f"{name}.svg" in run.location.read_text("report/index.html")


def test_secrets_are_in_no_database_log_or_run(connected, scheduled, tmp_path):
    secrets = [connected.env["AWS_SECRET_ACCESS_KEY"], connected.env["AWS_ACCESS_KEY_ID"]]
    ports = connected.data / "ports.json"
    port = re.search(r'"postgres": (\d+)', ports.read_text())
    kept = re.search(r'"database": "([^"]+)"', (connected.data / "secrets.json").read_text())
    assert port is not None
    assert kept is not None
    dump = subprocess.run(
        [postgres_program("pg_dump"), "-h", "127.0.0.1", "-p", port[1], "-U", "prefect", "prefect"],
        env=os.environ | {"PGPASSWORD": kept[1]}, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert b"study stacked" in dump  # it is the right database
    places = {"dump": dump}
    for folder in ("logs", "prefect", "dask"):
        for file in (connected.data / folder).rglob("*"):
            if file.is_file():
                places[str(file)] = file.read_bytes()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    for path in files.find("runs/scheduled"):
        places[path] = files.cat_file(path)
    assert len(places) > 300
    for place, content in places.items():
        for secret in (*secrets, kept[1]):
            if not (place.endswith("seaweedfs.log") and secret == secrets[1]):
                # SeaweedFS writes its key id to its log, which only the current user can read.
                assert secret.encode() not in content, place
    for name in ("secrets.json", "env"):
        assert (connected.data / name).stat().st_mode & 0o077 == 0, name


def test_services_listen_on_loopback_only(connected):
    listening = set()
    for process in psutil.Process(connected.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a flow's process has just ended
            connections = process.net_connections("inet")
            listening |= {c.laddr for c in connections if c.status == psutil.CONN_LISTEN}
    assert len(listening) >= 10
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


def test_obstore_and_s3fs_read_what_the_other_writes(connected, tiny_model, monkeypatch):
    run = prepare_run(small_study("clients", tiny_model, 8), "s3://runs/clients")
    group = f"activations/{run.layers[0]}"
    shape = run.open(group).activation.shape
    values = np.random.default_rng(0).normal(size=(4, *shape[1:])).astype(np.float16)
    for writer, spec, part in (
        ("obstore", "s3fs", slice(0, 4)),
        ("s3fs", "obstore", slice(4, 8)),
    ):
        monkeypatch.setenv("LDMPROBE_S3_CLIENT", writer)
        run.write(group, {"activation": values}, sample=part)
        monkeypatch.setenv("LDMPROBE_S3_CLIENT", spec)
        np.testing.assert_array_equal(run.read(group, "activation", sample=part), values)
        assert not run.progress.is_done("generated", 0)  # what is not there is no error


def command(stack, study_file, store, **more):
    return subprocess.Popen(
        [str(BIN / "ldmprobe"), "run", str(study_file), "--store", store,
         "--set", "execution.runner=dask",
         "--set", f"execution.address={stack.env['LDMPROBE_DASK']}"],
        env=stack.environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_faulty_object_store_gives_the_same_bytes(connected, tiny_model, tmp_path):
    study = small_study("faulty", tiny_model, 10)
    plain = carry_out(study, str(tmp_path))
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())
    keys = {n: connected.env[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    profile = tmp_path / "credentials"  # as they are kept for other S3 clients
    profile.write_text("[lab]\n" + "".join(f"{k.lower()} = {v}\n" for k, v in keys.items()))
    environment = {k: v for k, v in connected.environment().items() if k not in keys}
    (port,) = free_ports(1)
    faults = Faults(failing=0.05, slow=0.05, seed=7)
    with proxy(connected.env["AWS_ENDPOINT_URL"], faults, port) as endpoint:
        done = subprocess.run(
            [str(BIN / "ldmprobe"), "run", str(path), "--store", "s3://runs/faulty"],
            env=environment | {"AWS_ENDPOINT_URL": endpoint, "AWS_PROFILE": "lab",
                               "AWS_SHARED_CREDENTIALS_FILE": str(profile)},
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert keys["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    assert_same(plain, Run(f"s3://runs/faulty/{study.run_name}"))
    assert sum(faults.done[kind] for kind in ("500", "503", "cut before", "lost answer")) > 20
    assert faults.done["slow"] > 20


def test_prepare_run_at_once_creates_one_run(connected, tiny_model):
    """The object store accepts only one conditional put, so only one caller creates the run."""
    study = small_study("many", tiny_model, 10)
    with ThreadPoolExecutor(4) as pool:
        starts = [pool.submit(prepare_run, study, "s3://runs/many") for _ in range(4)]
        runs = [start.result() for start in starts]
    assert {run.url for run in runs} == {f"s3://runs/many/{study.run_name}"}
    assert len({run.location.read_text("identity") for run in runs}) == 1


@pytest.mark.timeout(1200)
def test_run_on_dask_workers_that_is_cancelled_or_suspended_in_prefect_is_resumed(
    connected, tiny_model, tmp_path
):
    """A deployment continues what a cancelled command began, and what it began itself."""
    study = small_study("cancelled", tiny_model, 60)
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())
    run = Run(f"s3://runs/cancelled/{study.run_name}")
    flow = command(connected, path, "s3://runs/cancelled")
    deadline = time.monotonic() + 300
    while not run.exists:
        assert flow.poll() is None, flow.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)  # polling for its first write, bounded by the deadline
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(like_="study cancelled"))
        (started,) = client.read_flow_runs(flow_run_filter=named)
        client.set_flow_run_state(started.id, Cancelling(), force=True)
        out, _ = flow.communicate(timeout=300)
        assert flow.returncode == 130, out[-3000:]
        assert f"flow run {started.id} was cancelled in Prefect" in out
        assert client.read_flow_run(started.id).state.is_cancelled()
        assert not run.location.has("summary.json")
        parameters = {"study": on_dask(study, connected), "store": "s3://runs/cancelled"}
        deployment = client.read_deployment_by_name("study/process")
        deployed = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        suspend(client, deployed.id, run)
        assert client.read_flow_run(deployed.id).state.name == "Suspended"
        assert not run.location.has("summary.json")
        client.resume_flow_run(deployed.id)
        assert finished(client, deployed.id, limit_s=600).state.is_completed()
    assert_same(carry_out(study, str(tmp_path / "plain")), run)


def suspend(client, flow_run_id, run):
    """Suspend a flow run after its first batch, as Prefect's UI does; wait for its run's lease."""
    before, deadline = run.progress.completed("generated").sum(), time.monotonic() + 300
    while run.progress.completed("generated").sum() == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # polling for its first batch, bounded by the deadline
    client.set_flow_run_state(flow_run_id, Suspended(timeout_seconds=600))
    while Location(f"{run.url}.lease").files():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # polling for the end of its units, bounded by the deadline


@pytest.mark.timeout(1200)
def test_workers_that_leave_and_join_change_no_byte(connected, tiny_model, tmp_path):
    """Workers are retired during a run, as an adaptive pool does; the stack starts new ones."""
    study = small_study("adaptive", tiny_model, 22)
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())
    plain = carry_out(study, str(tmp_path / "plain"))
    run = Run(f"s3://runs/adaptive/{study.run_name}")
    flow = command(connected, path, "s3://runs/adaptive")
    left = set()
    with Client(connected.env["LDMPROBE_DASK"], set_as_default=False) as client:
        while flow.poll() is None:
            try:
                flow.wait(1.0)
            except subprocess.TimeoutExpired:
                workers = client.scheduler_info()["workers"]
                if len(workers) == 2 and run.exists:
                    left |= client.retire_workers([min(workers)]).keys()
    out, _ = flow.communicate(timeout=60)
    assert flow.returncode == 0, out[-3000:]
    assert left
    assert_same(plain, run)


KILLS = [
    *["flow"] * 12, *["worker"] * 8, *["nanny"] * 4, *["server"] * 5, *["postgres"] * 4,
    *["store"] * 4, *["scheduler"] * 3,
]  # fmt: skip


def kill(stack, what, flow):
    if what == "flow":
        flow.kill()
        return
    if what == "worker":  # the process that computes, below its nanny
        nanny = stack.service("nanny")
        children = [c for c in nanny.children() if c.status() != psutil.STATUS_ZOMBIE]
        target = children[-1] if children else nanny
    else:
        target = stack.service(what)
    target.kill()


@pytest.mark.timeout(3000)  # enough for forty restarts on a busy machine
def test_kills_at_any_moment_change_no_byte(connected, tiny_model, tmp_path):
    """Run a study again and again until forty processes were killed; each run is completed."""
    assert len(KILLS) == 40
    lot = random.Random(20)
    kills = KILLS.copy()
    lot.shuffle(kills)
    (port,) = free_ports(1)
    record = Faults()
    study = small_study("killed", tiny_model, 22)
    path = tmp_path / "study.yaml"
    path.write_text(study.to_json())
    plain = carry_out(study, str(tmp_path / "plain"))
    number = 0
    with proxy(connected.env["AWS_ENDPOINT_URL"], record, port) as endpoint:
        while kills:
            number += 1
            store = f"s3://runs/killed-{number}"
            run = Run(f"{store}/{study.run_name}")
            complete = False
            while not complete:
                connected.wait_until_reachable()
                before = run.progress.completed("generated") if run.exists else []
                seen = len(record.puts)
                flow = command(connected, path, store, AWS_ENDPOINT_URL=endpoint)
                # The flow takes the run's lease first; writes before that are the command's checks.
                _strike(
                    connected, kills, flow, lot,
                    lambda seen=seen: any(".lease/" in key for key in record.puts[seen:]),
                )  # fmt: skip
                out, _ = flow.communicate(timeout=400)
                connected.wait_until_reachable()
                complete = run.location.has("summary.json")
                assert complete or kills or flow.returncode, out[-3000:]
                again = {
                    int(key.split("/c/")[1].split("/")[0])
                    for key in record.puts[seen:]
                    if "/images/image/c/" in key
                }
                assert not again & {i for i, done in enumerate(before) if done}
            assert flow.returncode == 0, out[-3000:]
            assert_same(plain, run)
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(like_="study killed"))
        deadline = time.monotonic() + 120
        while True:
            runs = client.read_flow_runs(flow_run_filter=named)
            states = Counter(run.state.name for run in runs)
            if states["Crashed"] or time.monotonic() > deadline:
                break
            time.sleep(1)  # polling for the state of a flow that was killed, bounded
        assert states["Completed"] == number
        assert states["Crashed"] >= 1, states
        # A flow run that was killed before it held a lease is only marked as crashed after ten
        # minutes without a heartbeat (infra.setup).
        silent = [run.id for run in runs if not run.state.is_final()]
    assert len(silent) <= 2


def _strike(stack, kills, flow, lot, at_work):
    """Kill processes at random times while a flow runs, until the flow ends.

    About one time in four, the first process is killed while the flow may still be starting.
    Otherwise the function first waits until the flow has written data.  A flow that is killed
    before it holds the lease of its run leaves no trace, so a later flow cannot mark it as crashed.
    """
    if lot.random() < 0.75:
        deadline = time.monotonic() + 300
        while flow.poll() is None and not at_work() and time.monotonic() < deadline:
            time.sleep(0.05)  # polling for its first write, bounded by the deadline
    while kills and flow.poll() is None:
        try:
            flow.wait(lot.uniform(0.0, 4.0))
        except subprocess.TimeoutExpired:
            kill(stack, kills.pop(), flow)


def test_stack_stops_and_starts_again_on_the_same_data(stack, reference, scheduled):
    assert stack.stop() == []
    assert stack.process.returncode == 0
    stack.start()
    with (
        temporary_settings({PREFECT_API_URL: stack.env["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        assert client.read_flow_run(scheduled.id).state.is_completed()
    second = subprocess.run(
        [sys.executable, "-m", "infra.stack", "--data", str(stack.data)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "another stack runs on" in second.stderr
