"""Hash of a model's files."""

import shutil

import pytest

from ldmprobe_core.models.files.model_folder import fingerprint


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["README.md", "figures.json", "ldmprobe.json", "labelers/maps.safetensors", "x/a.json"]
)
def test_fingerprint_ignores_files_that_no_component_loads(folder, name):
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_fingerprint_changes_with_every_file_of_the_pipeline(folder, name):
    before, content = fingerprint(folder), (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    assert fingerprint(folder) != before
    (folder / name).write_bytes(content)
    assert fingerprint(folder) == before


def test_fingerprint_changes_if_a_file_is_renamed(folder):
    before = fingerprint(folder)
    (folder / "vae/config.json").rename(folder / "vae/other.json")
    assert fingerprint(folder) != before
