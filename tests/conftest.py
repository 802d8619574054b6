"""Shared fixtures: a tiny untrained pipeline in the ordinary folder layout, and studies of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach out
# Idle threads of OpenMP and BLAS spin, at the cost of the other tests and servers of the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A loaded machine takes longer than Prefect's 20 s to start the server of its test harness.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

import pytest
from prefect_servers import connected_to, copy_database, database_in, server_on
from run_helpers import carry_out, small_study
from tiny_models import write_tiny_model
from untried import pytest_deselected as pytest_deselected
from untried import pytest_terminal_summary as pytest_terminal_summary
from untried import pytest_testnodedown as pytest_testnodedown

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import PROPERTIES
from ldmprobe_core.study.schema import Study

TINY_LAYERS = ("down_blocks.0.attentions.0.*.attn1", "mid_block.*.attn1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_study(tiny_model: Path) -> Callable[..., Study]:
    """A study of the tiny model: 12 samples, 3 steps, 2 layers; keyword parts override."""

    def make(**parts: Any) -> Study:
        content: dict[str, Any] = {
            "name": "tiny",
            "model": {"source": str(tiny_model)},
            "prompts": {"set": "tabletop", "samples": 12},
            "sampling": {"steps": 3, "batch": 4, "guidance": 2.0, "threads": 1},
            "capture": {"layers": list(TINY_LAYERS)},
            "labels": dict.fromkeys(("foreground", "depth", "shading", "class"), "tabletop"),
            "bootstrap": {"resamples": 200},
        }
        for key, value in parts.items():
            old = content.get(key)
            content[key] = {**old, **value} if isinstance(old, dict) else value
        return parse_study(content)

    return make


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write modules of a user; they and the properties that they bring are forgotten afterwards."""
    known, names, folder = {*PROPERTIES}, [], tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(name: str, source: str) -> None:
        (folder / f"{name}.py").write_text(source)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)
    for prop in PROPERTIES.keys() - known:
        PROPERTIES.pop(prop)


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 14 samples of the tiny model, with its report; tests only read it."""
    study = small_study("whole", tiny_model, 14)
    run = carry_out(study, str(tmp_path_factory.mktemp("finished")))
    build_report(run, {"generate": 1.0})
    return run


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME folder with a server's database, made once for all processes of pytest."""
    folder = tmp_path_factory.getbasetemp()
    return database_in(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture
def prefect_home(prefect_database: Path, tmp_path: Path) -> Path:
    """A PREFECT_HOME folder whose database has its tables and no record."""
    return copy_database(prefect_database, tmp_path / "prefect")


@pytest.fixture(scope="session")
def shared_server(
    prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of the API of a Prefect server for all tests of this process that need any server."""
    home = copy_database(prefect_database, tmp_path_factory.mktemp("shared") / "prefect")
    with server_on(home) as url:
        yield url


@pytest.fixture
def prefect_api(shared_server: str) -> Iterator[str]:
    """URL of the API of a Prefect server, which this process uses; it has other tests' records."""
    with connected_to(shared_server):
        yield shared_server


SLOWEST_FILES = (
    "infra/test_stack.py",
    "flows/test_study_flow.py",
    "tabletop/test_embedded_model.py",
    "flows/test_stopped_runs.py",
    "examples/test_examples.py",
    "docs/test_readme.py",
    "labelers/test_base.py",
    "infra/test_wheel.py",
    "pipeline/test_statistics.py",
    "pipeline/test_own_images.py",
)
"""The files that take longest, longest first, with their paths below this folder."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist give out files in the order below instead of by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, so that no process is left alone with one at the end."""
    folder = Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
