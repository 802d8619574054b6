"""The command ``ldmprobe fetch`` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from hub_server import hub_server
from typer.testing import CliRunner

from flows import cli

ROOT = Path(__file__).parents[2]


def test_fetch_brings_a_study_into_a_folder_and_names_its_variables(tiny_model, tmp_path):
    study = {
        "name": "tiny",
        "model": {"source": "tiny/model"},
        "prompts": {"samples": 12},
        "labels": {"foreground": None, "depth": None, "shading": "retinex", "class": None},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    with hub_server() as hub:
        hub.add("tiny/model", tiny_model)
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-m", "flows.cli", "fetch", "tiny.yaml", "--to", "weights"],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.stderr == ""
    assert result.returncode == 0
    # The process ends with a plan of the study, for which nothing may be missing.
    hint = f"HF_HUB_CACHE={tmp_path}/weights/hub TORCH_HOME={tmp_path}/weights/torch ldmprobe run"
    assert f"Everything is here: {hint} tiny.yaml" in result.stdout
    assert (tmp_path / "weights/hub/models--tiny--model/snapshots").is_dir()


def test_fetch_refuses_a_bucket():
    result = CliRunner().invoke(cli.app, ["fetch", "tabletop", "--to", "s3://bucket/weights"])
    assert result.exit_code == 1
    assert "--to: 's3://bucket/weights' is no local path. Fix: " in str(result.exception)
