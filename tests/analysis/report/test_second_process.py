"""Second process of a report: same files and numbers as without it, no harm if it fails."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiers import rest_slow

from ldmprobe_core.analysis.kept_analysis import KEPT
from ldmprobe_core.analysis.report.build import rebuild_report
from ldmprobe_core.analysis.report.drawing import second_process as module
from ldmprobe_core.analysis.report.drawing.second_process import (
    pays_second_process,
    second_process,
)
from ldmprobe_core.storage.run import Run


@pytest.fixture(scope="module")
def reported(finished_run, tmp_path_factory):
    """Copy of a finished run with a report that one process has drawn."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run.url, folder)
    return folder


def _files(folder):
    """Bytes of the report's files, except the page, which names the size of the run."""
    found = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.name != "index.html"}


def _no_fallback():
    raise AssertionError("the second process did not draw")


def _copy(reported, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reported, folder)
    for path in [*(folder / "report").glob("class-*.svg"), folder / "report" / "samples.html"]:
        path.unlink()
    shutil.rmtree(folder / "report" / "samples")
    return folder


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_two_processes_write_the_same_files_as_one(reported, tmp_path, two_cpus, monkeypatch):
    monkeypatch.chdir(tmp_path)  # also with a run that is named relative to the working directory
    folder = _copy(reported, tmp_path)
    with second_process() as second:
        result = second.result
        monkeypatch.setattr(second, "result", lambda _: result(_no_fallback))
        rebuild_report(Run("run"), second=second)
    assert _files(folder) == _files(reported)
    assert {"report/samples.html", "report/scores.csv"} < set(_files(folder))


def test_two_processes_compute_the_same_statistics_as_one(
    reported, tmp_path, two_cpus, monkeypatch, caplog
):
    monkeypatch.setattr(module, "SMALLEST_RUN", 0)
    folder, asked = _copy(reported, tmp_path), []
    (folder / KEPT).unlink()
    with second_process() as second:
        ask, start = second.ask, second.start

        def finish(function):
            """Wait for the second process, so that it certainly computes all parts."""
            future = start(function)
            future.result()
            return future

        monkeypatch.setattr(second, "start", finish)
        monkeypatch.setattr(
            second, "ask", lambda function, **job: (asked.append(function), ask(function, **job))[1]
        )
        rebuild_report(Run(str(folder)), second=second)
    assert _files(folder) == _files(reported)  # with the kept statistics
    assert {module.LOAD, module.STATISTICS, module.DRAW} == set(asked)
    assert "failed" not in caplog.text


@pytest.mark.parametrize(
    ("last", "code"), rest_slow([("exit 3", 3), ("echo a library says hello", 0)], (0,))
)
def test_report_is_complete_if_the_second_process_fails(
    reported, tmp_path, two_cpus, caplog, monkeypatch, last, code
):
    folder, failing = _copy(reported, tmp_path), tmp_path / "python"
    failing.write_text(f"#!/bin/sh\nread job\n{last}\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    with second_process() as second:
        rebuild_report(Run(str(folder)), second=second)
    assert _files(folder) == _files(reported)
    assert f"the process that made it has failed (exit code {code})" in caplog.text


def test_a_job_that_fails_is_answered_without_a_traceback_and_the_next_one_is_done(
    reported, two_cpus, capfd, caplog
):
    part = {"kind": "property", "name": "colour"}
    with second_process() as second:
        assert second.ask(module.STATISTICS, url=str(reported), part=part) is None
        second.warn()
        assert second.ask(module.LOAD) == ({}, b"")
    assert "the process that made it has failed (KeyError: 'colour')" in caplog.text
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "Fatal" not in printed.out + printed.err


def test_no_process_is_left_or_started_without_need(reported, two_cpus, monkeypatch, caplog):
    def stopped(second):
        second.prepare()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), second_process() as second:
        stopped(second)
    assert "failed" not in caplog.text  # a job was broken off, and is not done again
    run = Run(str(reported))
    assert not second.can_read(run)  # it has ended
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with second_process() as second:
        assert second is None


def test_a_property_of_this_process_alone_is_not_sent(reported, two_cpus, monkeypatch):
    run = Run(str(reported))
    with second_process() as second:
        assert second.can_read(run)
        monkeypatch.setattr("ldmprobe_core.study.properties.is_built_in", lambda p: p == "depth")
        assert not second.can_read(run)


def test_probes_of_this_process_alone_are_not_sent(reported, two_cpus, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_RUN", 0)
    run = Run(str(reported))
    with second_process() as second:
        assert second.can_compute(run)
        kinds = SimpleNamespace(kinds=(*run.study.probes.kinds, "a kind of the user"))
        monkeypatch.setattr(run, "study", SimpleNamespace(labels=run.study.labels, probes=kinds))
        assert not second.can_compute(run)


@pytest.mark.parametrize(
    ("images", "remote", "pays"), [(240, False, True), (90, False, False), (240, True, False)]
)
def test_a_second_process_pays_for_large_local_runs(images, remote, pays):
    """The default study has 240 images, 15 steps and 7 layers."""
    run = SimpleNamespace(
        location=SimpleNamespace(remote=remote),
        n_stored=images,
        layers=["layer"] * 7,
        open=lambda group: SimpleNamespace(sizes={"step": 15}),
    )
    assert pays_second_process(run) == pays


def test_modules_of_the_start_are_light():
    """The process is started before this one loads libraries, so that both load side by side."""
    code = (
        "import sys; import ldmprobe_core.analysis.report.drawing.second_process; "
        "print([name for name in ('numpy', 'zarr', 'torch', 'scipy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
