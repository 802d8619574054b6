"""Tests of the study flow as a user runs it, with real processes, servers and workers."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from run_helpers import assert_same, carry_out, small_study

from flows import cli
from flows import study as study_flow
from flows.run_lock import task_runs
from flows.server import prefect_server
from infra.stack import free_ports
from ldmprobe_core.pipeline.parallel import cells
from ldmprobe_core.pipeline.parallel.helper_process import HelperProcess
from ldmprobe_core.pipeline.planning import plan
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import find_corrupt_chunks
from ldmprobe_core.study.loading import load_study, parse_study

COMMAND = Path(sys.executable).parent / "ldmprobe"


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    """Return a study, and its run by a plain loop, which the tests compare with the flow's run."""
    study = small_study("flow", tiny_model, 12)
    folder = tmp_path_factory.mktemp("reference")
    path = folder / "study.yaml"
    path.write_text(study.to_json())  # JSON is YAML
    return path, carry_out(study, str(folder / "runs"))


@pytest.fixture(autouse=True)
def own_port(monkeypatch):
    """Keep the tests from using a Prefect server that happens to run on this machine."""
    (port,) = free_ports(1)
    monkeypatch.setenv("LDMPROBE_PREFECT_PORT", str(port))
    return port


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))}
    return kept | {"PREFECT_HOME": str(home), "COLUMNS": "160"} | more


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ldmprobe(*words: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words],
        env=environment(home, **more),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_run_command_records_every_task_run(reference, tmp_path):
    path, plain = reference
    store, home = tmp_path / "runs", tmp_path / "prefect"
    done = ldmprobe("run", str(path), "--store", str(store), home=home)
    assert done.returncode == 0, done.stderr
    assert "Prefect UI: http://127.0.0.1:" in done.stdout
    run = Run(f"{store}/{plain.study.run_name}")
    assert_same(plain, run)
    assert (store / plain.study.run_name / "report" / "index.html").is_file()

    # The server that the command started has ended, so a new server reads its records.
    with temporary_settings({PREFECT_HOME: home, PREFECT_API_URL: None}):
        os.environ["PREFECT_HOME"] = str(home)
        try:
            with prefect_server(), get_client(sync_client=True) as client:
                (flow,) = client.read_flow_runs()
                recorded = task_runs(client, flow.id)
                artifacts = {a.key for a in client.read_artifacts()}
        finally:
            del os.environ["PREFECT_HOME"]
    assert flow.name == "study flow"
    assert flow.state.is_completed()
    names = sorted(t.name for t in recorded)
    assert all(t.state.is_completed() for t in recorded)
    assert len([n for n in names if n.startswith("batch ")]) == 3
    assert len([n for n in names if n.startswith("label ")]) == 3
    assert len([n for n in names if n.startswith("cell step ")]) == 12  # two layers, two inputs
    assert len(names) == 3 + 3 + 12 + 2
    assert "batch 0001 · samples 4-7" in names
    wanted = {"best-cells-flow", "summary-flow", "progress-generate", "report-flow"}
    wanted |= {f"heatmap-{prop}-flow" for prop in ("foreground", "depth", "shading")}
    assert wanted <= artifacts

    again = ldmprobe("run", str(path), "--store", str(store), home=home)
    assert "finished already" in again.stdout
    shown = ldmprobe("show", run.url, "--json", home=home)
    assert json.loads(shown.stdout)["study_hash"] == plain.study.hash
    assert "rank correlation" in ldmprobe("show", run.url, home=home).stdout


def test_run_plans_and_resolves_a_study_once(prefect_api, tiny_model, tmp_path, monkeypatch):
    """The flow uses the plan that the command made, instead of planning the study a second time."""
    calls = []

    def counted(name):
        function = getattr(plan, name)

        def call(study):
            calls.append(name)
            return function(study)

        monkeypatch.setattr(plan, name, call)

    counted("plan_study")
    counted("resolve_inputs")
    (tmp_path / "p.csv").write_text(
        "prompt,seed\n" + "".join(f"a ball {i},{i}\n" for i in range(8))
    )
    content = small_study("once", tiny_model, 8).model_dump(mode="json", by_alias=True)
    content["prompts"] = {"files": str(tmp_path / "p.csv")}
    content["probes"] = {"kinds": ["ridge"]}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(content))
    cli.run(str(path), str(tmp_path / "runs"), None)
    assert calls == ["plan_study", "resolve_inputs"]
    (folder,) = (tmp_path / "runs").iterdir()
    memory = json.loads((folder / "summary.json").read_text())["memory"]["memory"]
    # `ldmprobe check` plans for one worker; the threads of a process share the libraries.  The
    # process has used no less now.
    study = load_study(str(path))
    of_one = plan.plan_study(study).memory
    each = sum(size for use, size in of_one.items() if use != "libraries")
    assert memory["planned"] == of_one["libraries"] + study.execution.workers * each
    assert 10**8 < memory["measured"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_run_with_a_helper_process_stores_the_bytes_of_one_process(
    reference, prefect_api, tmp_path, monkeypatch
):
    path, plain = reference
    answers, ask = [], HelperProcess.ask

    def noted(helper, function, **job):
        answers.append(ask(helper, function, **job))
        return answers[-1]

    monkeypatch.setattr(HelperProcess, "ask", noted)
    monkeypatch.setattr(cells, "SMALLEST_WORK", 1)
    monkeypatch.setattr(study_flow, "CPU_COUNT", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    cli.run(str(path), str(tmp_path / "runs"), ["execution.workers=2"])
    assert answers
    assert None not in answers
    (folder,) = (tmp_path / "runs").iterdir()
    assert_same(Run(str(folder)), plain)


@pytest.mark.slow
def test_run_command_keeps_statistics_on_two_dask_workers(tiny_model, tmp_path, prefect_home):
    """The command gives the same sums and scores as a loop, and stores only held-out samples."""
    content = small_study("sums", tiny_model, 40).model_dump(mode="json", by_alias=True)
    content["capture"] |= {"keep": "statistics", "accumulators": 3}
    content["probes"] = {"kinds": ["ridge"], "split": {"heldout": 8}}
    content["execution"] = {"runner": "dask", "workers": 2}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(content))
    plain = carry_out(parse_study(content), str(tmp_path / "plain"))
    done = ldmprobe("run", str(path), "--store", str(tmp_path / "runs"), home=prefect_home)
    assert done.returncode == 0, done.stderr
    run = Run(f"{tmp_path}/runs/{plain.study.run_name}")
    assert_same(plain, run)
    assert run.n_stored == 8
    assert json.loads(run.location.read_text("summary.json"))["samples"]["train"] == 32
    assert list(find_corrupt_chunks(run)) == []


@pytest.mark.slow
def test_classify_command_precedes_run_and_shows_photographs(reference, tmp_path, prefect_home):
    path, plain = reference
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 16), (60 * i, 90, 30)).save(photographs / f"{i}.png")
    store, home = tmp_path / "runs", prefect_home
    words = (str(path), "--store", str(store))
    done = ldmprobe("classify", *words, "--photographs", str(photographs), home=home)
    assert done.returncode == 0, done.stderr
    assert "Of 3 pictures" in done.stdout
    run = Run(f"{store}/{plain.study.run_name}")
    assert run.progress.completed("labeled").all()
    assert not run.progress.completed("probed").any()
    done = ldmprobe("run", *words, home=home)
    assert done.returncode == 0, done.stderr
    assert_same(plain, run)
    assert "on 3 photographs" in run.location.read_text("report/index.html")


@pytest.mark.slow
def test_run_command_refuses_a_run_that_is_held(reference, tmp_path, prefect_home):
    path, plain = reference
    place = f"{tmp_path}/runs/{plain.study.run_name}"
    with hold_lease(place, "flow run 0815"):
        done = ldmprobe("run", str(path), "--store", f"{tmp_path}/runs", home=prefect_home)
    assert done.returncode == 1
    assert "is being worked on by flow run 0815" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(place).exists()


@pytest.mark.slow
def test_run_command_resumes_after_kill_with_equal_bytes(
    reference, tmp_path, own_port, prefect_home
):
    path, plain = reference
    store, home = tmp_path / "runs", prefect_home
    run = Run(f"{store}/{plain.study.run_name}")
    process = subprocess.Popen(
        [str(COMMAND), "run", str(path), "--store", str(store)],
        env=environment(home),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (run.exists and run.progress.completed("generated").any()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)  # polling for the moment to kill, bounded by the deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.location.has("summary.json")
    # In addition, one bit of the stored data is changed, as by a failing disk.
    done = int(run.progress.completed("generated").argmax())
    layer = run.layers[0]
    chunk = Path(run.url) / f"activations/{layer}/activation/c/{done}/1/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"\x07" + chunk.read_bytes()[-8:])
    while answers(own_port):  # the server goes with the run that started it
        assert time.monotonic() < deadline
        time.sleep(0.1)  # polling for its end, bounded by the deadline
    done = ldmprobe("run", str(path), "--store", str(store), home=home)
    assert done.returncode == 0, done.stderr
    assert_same(plain, run)
    assert list(find_corrupt_chunks(run)) == []
