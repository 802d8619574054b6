"""Tests of the command that deletes old runs: it shows first, and deletes with --yes alone."""

from __future__ import annotations

import os

import pytest
from run_helpers import small_study
from typer.testing import CliRunner

from flows import cli
from ldmprobe_core.pipeline.prepare import prepare_run


def output_of(*words: str) -> list[str]:
    result = CliRunner().invoke(cli.app, ["prune", *words])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture
def names(tiny_model, tmp_path):
    """Names of a finished run, an older finished run, and an unfinished run of one study."""
    made = []
    for age, samples in enumerate((8, 9, 10)):
        run = prepare_run(small_study("nightly", tiny_model, samples), f"{tmp_path}/runs")
        os.utime(f"{run.url}/identity", times=(1e9 - age,) * 2)
        if age < 2:
            run.location.write_text("summary.json", "{}")
        made.append(run.url.rpartition("/")[2])
    return made


def test_prune_shows_and_with_yes_deletes(names, tmp_path):
    new, old, begun = names
    words = ("nightly", "--store", str(tmp_path / "runs"), "--keep", "1")
    shown = output_of(*words)
    assert shown[:-1] == [
        f"{new}: keep",
        shown[1],
        f"{begun}: left alone (unfinished)",
    ]
    assert shown[1].startswith(f"{old}: delete (0.")
    assert shown[-1].startswith("nothing was deleted; the same command with --yes frees 0.")
    assert sorted(os.listdir(tmp_path / "runs")) == sorted(names)
    done = output_of(*words, "--yes")
    assert done[:-1] == shown[:-1]
    assert done[-1].endswith(" GB were deleted")
    assert sorted(os.listdir(tmp_path / "runs")) == sorted([new, begun])
    assert output_of(*words)[-1] == "there is nothing to delete"
    (line,) = output_of("other", *words[1:])
    assert line.endswith("holds no run of a study 'other'")
