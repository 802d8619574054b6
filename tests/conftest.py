"""Shared fixtures: a tiny untrained pipeline in the ordinary folder layout, and studies of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach out
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A loaded machine takes longer than Prefect's 20 s to start the server of its test harness.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

import pytest
from run_helpers import carry_out, small_study
from tiny_models import write_tiny_model

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
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
            "prompts": {"samples": 12},
            "sampling": {"steps": 3, "batch": 4, "guidance": 2.0, "threads": 1},
            "capture": {"layers": list(TINY_LAYERS)},
            "bootstrap": {"resamples": 200},
        }
        for key, value in parts.items():
            old = content.get(key)
            content[key] = {**old, **value} if isinstance(old, dict) else value
        return parse_study(content)

    return make


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 14 samples of the tiny model, with its report; tests only read it."""
    study = small_study("whole", tiny_model, 14)
    run = carry_out(study, str(tmp_path_factory.mktemp("finished")))
    build_report(run, {"generate": 1.0})
    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: of two processes, neither is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_stack.py")
