"""Command that trains the embedded model."""

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.tabletop import denoiser, export, train
from ldmprobe_core.tabletop.measures.milestones import Milestones


@pytest.mark.slow
def test_train_main_continues_a_model_folder_and_writes_another(tiny, tmp_path, monkeypatch):
    folder = tiny[0]
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    for name in ("scenes", "latents.npy"):
        (work / name).symlink_to(folder / name)
    monkeypatch.setattr(train, "HELD_OUT", 24)
    monkeypatch.setattr(
        denoiser, "DENOISER_CONTINUED", replace(denoiser.DENOISER_CONTINUED, batch=8)
    )
    monkeypatch.setattr(train, "Milestones", partial(Milestones, generated=12))
    monkeypatch.setattr(export, "JUDGED_IMAGES", 12)
    command = ["train", "--from", str(MODEL_FOLDER), "--work", str(work), "--out", str(out)]
    command += ["--stages", "denoiser", "export", "--denoiser-samples", "32"]
    command += ["--contact-sheet", str(tmp_path / "sheet.png")]
    monkeypatch.setattr(sys, "argv", command)
    train.main()
    assert (work / "milestones" / "00000000.json").is_file()
    assert (tmp_path / "sheet.png").is_file()
    before = json.loads((MODEL_FOLDER / "figures.json").read_text())["training"]
    after = json.loads((out / "figures.json").read_text())["training"]
    assert after["denoiser"]["samples"] == before["denoiser"]["samples"] + 32
    assert after["maps"] == before["maps"]
    for part in ("vae", "labelers"):
        for path in (MODEL_FOLDER / part).glob("*.safetensors"):
            old, new = load_file(path), load_file(out / part / path.name)
            assert all(torch.equal(old[key], value) for key, value in new.items())
    assert "| judge: accuracy on 12 generated images |" in (out / "README.md").read_text()
