"""Helper process: it answers jobs, says why one failed, and never outlives this process."""

import os
import subprocess
import sys

import pytest

from ldmprobe_core.pipeline.parallel.helper_process import helper_process


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.fixture
def jobs_module(tmp_path, monkeypatch):
    """Name of a module with functions for jobs, which a helper process can import."""
    (tmp_path / "jobs_of_a_test.py").write_text(
        "import os, sys, time\n"
        "def total(numbers):\n"
        "    print('a library says hello')\n"
        "    return {'total': sum(numbers), 'process': os.getpid()}, bytes(numbers)\n"
        "def refuse():\n"
        "    raise ValueError('no')\n"
        "def end():\n"
        "    os._exit(3)\n"
        "def sleep():\n"
        "    print('asleep', file=sys.stderr, flush=True)\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "jobs_of_a_test"


def test_answers_jobs_in_a_process_of_its_own(jobs_module, capfd):
    with helper_process(jobs_module) as helper:
        record, content = helper.ask(f"{jobs_module}:total", numbers=[1, 2, 10])
        assert (record["total"], content) == (13, b"\x01\x02\n")
        assert record["process"] != os.getpid()
        assert helper.ask(f"{jobs_module}:total", numbers=[4])[0]["total"] == 4
    assert "a library says hello" in capfd.readouterr().err


def test_says_why_a_job_failed_and_does_the_next_one(jobs_module):
    with helper_process() as helper:
        assert helper.ask(f"{jobs_module}:refuse") is None
        assert helper.failure == "ValueError: no"
        assert helper.ask("no_such_module:refuse") is None
        assert helper.failure.startswith("ModuleNotFoundError")
        assert helper.runs
        assert helper.ask(f"{jobs_module}:total", numbers=[])[1] == b""


def test_says_with_which_exit_code_the_process_ended(jobs_module):
    with helper_process() as helper:
        assert helper.ask(f"{jobs_module}:end") is None
        assert helper.failure == "exit code 3"
        assert not helper.runs
        assert helper.ask(f"{jobs_module}:total", numbers=[1]) is None


def test_is_ended_with_the_block(jobs_module):
    def stopped(helper):
        assert helper.runs
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), helper_process() as helper:
        stopped(helper)
    assert not helper.runs


def test_there_is_none_on_one_cpu(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with helper_process() as helper:
        assert helper is None


def test_ends_in_the_midst_of_a_job_if_the_first_process_is_gone(jobs_module):
    """The end of a process closes its pipes, as this test closes its own."""
    module = "ldmprobe_core.pipeline.parallel.helper_process"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    ) as process:
        process.stdin.write(f'["{jobs_module}:sleep", {{}}]\n'.encode())
        process.stdin.flush()
        assert process.stderr.readline() == b"asleep\n"
        process.stdin.close()
        assert process.wait(timeout=120) == 1
        assert (process.stderr.read(), process.stdout.read()) == (b"", b"")
