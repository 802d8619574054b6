"""Command that trains the embedded model."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.tabletop import denoiser, export, train
from ldmprobe_core.tabletop.measures.milestones import Milestones


@pytest.mark.slow
def test_train_main_continues_a_model_folder_and_writes_another(tiny, tmp_path, monkeypatch):
    folder = tiny[0]
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "scenes").symlink_to(folder / "scenes")
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


def test_train_main_refuses_scenes_that_are_all_held_out_before_it_renders(tmp_path, monkeypatch):
    work = tmp_path / "work"
    monkeypatch.setattr(sys, "argv", ["train", "--work", str(work), "--scenes", "2000"])
    with pytest.raises(
        UserError, match=r"^--scenes: 2000 scenes leave none to train on.*Fix: give"
    ):
        train.main()
    assert not work.exists()


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser", "labelers", "export"])
def test_train_main_names_scenes_that_are_not_rendered(tmp_path, monkeypatch, stage):
    command = ["train", "--work", str(tmp_path), "--stages", stage]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(
        UserError, match=r"no rendered scenes \(rgb\.npy is missing\)\. Fix: add render to --stages"
    ):
        train.main()


def test_train_main_refuses_to_begin_from_no_model_folder(tmp_path, monkeypatch):
    work = tmp_path / "work"
    command = ["train", "--work", str(work), "--from", str(tmp_path), "--stages", "export"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match=r"^--from: .* is no model folder\. Fix: give a folder"):
        train.main()
    assert not work.exists()


def test_require_same_origin_refuses_checkpoints_that_began_otherwise(tmp_path):
    work, first, second = (tmp_path / name for name in ("work", "first", "second"))
    work.mkdir()
    for number, folder in enumerate((first, second)):
        (folder / "vae").mkdir(parents=True)
        save_file({"a": torch.tensor([number])}, folder / "vae" / "weights.safetensors")
    train.require_same_origin(work, second)  # another beginning, but nothing is trained yet
    train.require_same_origin(work, first)
    (work / "latents.npy").touch()
    train.require_same_origin(work, first)
    for begin, new_denoiser in ((second, False), (None, False), (first, True)):
        with pytest.raises(UserError, match=r"--work: .*work holds checkpoints \(latents\.npy\)"):
            train.require_same_origin(work, begin, new_denoiser=new_denoiser)
    train.require_same_origin(work, first)
    shutil.copy(second / "vae" / "weights.safetensors", first / "vae")
    with pytest.raises(UserError, match=r"as it is now\. Fix: give another folder"):
        train.require_same_origin(work, first)


def test_require_same_origin_takes_checkpoints_without_a_record_as_from_scratch(tmp_path):
    (tmp_path / "denoiser.safetensors").touch()
    train.require_same_origin(tmp_path, None)
    (tmp_path / "origin.txt").unlink()
    with pytest.raises(UserError, match=r"\(denoiser\.safetensors\) of a training"):
        train.require_same_origin(tmp_path, MODEL_FOLDER)
