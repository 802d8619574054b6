"""Tests of the descriptions of failures of units and of their workers."""

from __future__ import annotations

from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from dask_units import deadly_unit, unit
from distributed.scheduler import KilledWorker, NoValidWorkerError
from prefect import flow

from flows.workers import workers_of
from ldmprobe_core.errors import RunError
from ldmprobe_core.study.sections import Execution
from tasks.failures import describe_failure, failure_and_remedy, remedy
from tasks.progress import StageError, follow


@flow
def deadly_flow(folder: str) -> None:
    with workers_of(Execution(runner="dask", workers=2)):
        units = {f"batch {i}": unit.submit(i) for i in range(3)}
        units["batch deadly"] = deadly_unit.submit(folder)
        units |= {f"batch {i}": unit.submit(i) for i in range(3, 6)}
        try:
            follow("generate", units)
        finally:
            done = sum(not name.endswith("deadly") and u.result() >= 0 for name, u in units.items())
            (Path(folder) / "done").write_text(str(done))


@pytest.mark.slow
def test_follow_names_a_unit_that_ends_its_worker_each_time(prefect_api, tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),  # each death takes seconds
        pytest.raises(StageError) as failure,
    ):
        deadly_flow(str(tmp_path))
    sentence = str(failure.value)
    assert sentence.startswith("1 of 7 units of generate failed, the first being batch deadly, ")
    assert "ended 2 times" in sentence
    assert "memory" in sentence
    assert sentence.count("Fix: ") == 1
    assert (tmp_path / "deaths").read_text() == "xx"
    assert (tmp_path / "done").read_text() == "6"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KilledWorker("unit", SimpleNamespace(address="tcp://a:1"), 3), "4 times"),
        (KilledWorker("unit", "tcp://a:1", 0), "1 times"),
        (NoValidWorkerError("unit", set(), set(), {}, 1.0), "no Dask worker"),
        (CancelledError(), "connection to the Dask scheduler was lost"),
        (ValueError("shapes"), "ValueError: shapes"),
    ],
)
def test_describe_failure_of_units_and_of_workers(error, words):
    assert words in describe_failure(error)
    assert "run the study again" in remedy(error)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RunError("labels.depth: no depth. Fix: correct the labeler"),
            "labels.depth: no depth. Fix: correct the labeler",
        ),
        (
            ValueError("no such\n  thing at http://me:secret@host"),
            "ValueError: no such thing at http://host. Fix: "
            "run the study again, which repeats only these",
        ),
        (
            RuntimeError("batch 1 is missing. Fix: generate it"),
            "RuntimeError: batch 1 is missing. Fix: generate it",
        ),
    ],
)
def test_failure_and_remedy_is_one_line_with_one_remedy(error, sentence):
    assert failure_and_remedy(error) == sentence
