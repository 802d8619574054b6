"""A finished run that release 0.3.0 made and that was archived, as this release reads it.

``tests/data/run-of-layout-8.zip`` is a study of the embedded model (10 samples, 2 steps, 1 layer,
foreground).  The file is not replaced: a release with another layout has to read it too.
"""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ldmprobe as lp
from flows.cli import app
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import find_corrupt_chunks

ARCHIVE = Path(__file__).parents[1] / "data" / "run-of-layout-8.zip"
DICE = 0.317744217813015
"""Mean Dice of the best cell over the 4 test samples, as the release printed it."""


@pytest.fixture
def folder(tmp_path):
    """The run, unpacked, and moved to a folder of another name."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    return Path(shutil.move(unpacked, tmp_path / "kept for good"))


def test_archived_run_is_whole_and_has_the_scores_that_it_had(folder):
    run = lp.open_run(folder)
    assert list(find_corrupt_chunks(Run(str(folder)))) == []
    best = run.summary.properties["foreground"].best
    assert best.score.mean == pytest.approx(DICE, abs=1e-12)
    # By hand, from the stored activations, labels and probe.
    probe = run.probe("foreground", best.step, best.layer)
    tokens = run.read(f"activations/{best.layer}", "activation")[:, best.step - 1].astype(float)
    masks = run.read("labels", "foreground") > 0.5
    side = masks.shape[1] // tokens.shape[1]
    dice = []
    for index, sample in enumerate(run.samples):
        if sample.split == "test":
            drawn = (tokens[index] @ probe.weight + probe.offset > probe.cut).repeat(side, 0)
            drawn = drawn.repeat(side, 1)
            both = (drawn & masks[index]).sum()
            dice.append(2 * both / (drawn.sum() + masks[index].sum()))
    assert np.mean(dice) == pytest.approx(DICE, abs=1e-6)


def test_archived_run_is_shown_verified_and_reported(folder):
    for command in ("show", "verify"):
        done = CliRunner().invoke(app, [command, str(folder)])
        assert done.exit_code == 0, done.output
    assert "every chunk is as it was written" in done.output
    (folder / "summary.json").unlink()
    build_report(Run(str(folder)), {})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["properties"]["foreground"]["best"]["score"]["mean"] == pytest.approx(DICE)
    assert (folder / "report" / "index.html").is_file()
