"""Model folder and model card."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.study.readers.model_record import RECORD
from ldmprobe_core.tabletop import export
from ldmprobe_core.tabletop.autoencoder import load_autoencoder
from ldmprobe_core.tabletop.denoiser import load_denoiser
from ldmprobe_core.tabletop.tokenizer import new_tokenizer


@pytest.mark.slow
def test_save_pipeline_keeps_weights_and_loads_in_one_dtype(tmp_path):
    model = load_denoiser(MODEL_FOLDER)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export.save_pipeline(tmp_path, load_autoencoder(MODEL_FOLDER), model, new_tokenizer())
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert {p.dtype for p in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }
    again = load_denoiser(tmp_path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())
    shipped = {path.relative_to(MODEL_FOLDER) for path in Path(MODEL_FOLDER).rglob("*.json")}
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.json")}
    assert written == shipped - {Path("figures.json"), Path(RECORD)}


def test_model_card_lists_normals_if_measured(tiny):
    figures = json.loads((MODEL_FOLDER / "figures.json").read_text())
    figures["labelers"]["depth inside objects"] = 0.876
    figures["labelers"].pop("normal, degrees off", None)
    without = export.model_card(figures, tiny[1])
    figures["labelers"]["normal, degrees off"] = 11.5
    card = export.model_card(figures, tiny[1])
    assert "inside objects | 0.876 | >= 0.85 |" in without
    assert "degrees" not in without
    assert "degrees | 11.500 | <= 12 |" in card


def test_add_records_sums_two_trainings():
    before = {
        "maps": {"samples": 5, "seconds": 1, "machine": "a CPU"},
        "denoiser": {"samples": 10, "seconds": 3, "machine": "a CPU"},
    }
    after = {"denoiser": {"samples": 7, "seconds": 2, "cpu_seconds": 4, "machine": "a GPU"}}
    assert export.add_records(before, after) == {
        "maps": {"samples": 5, "seconds": 1, "machine": "a CPU"},
        "denoiser": {"samples": 17, "seconds": 5, "cpu_seconds": 4, "machine": "a CPU, then a GPU"},
    }


def test_save_record_writes_the_record_that_ships(tmp_path):
    export.save_record(tmp_path)
    assert (tmp_path / RECORD).read_bytes() == (MODEL_FOLDER / RECORD).read_bytes()
