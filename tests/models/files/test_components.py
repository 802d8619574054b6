"""Models whose components are missing, of unknown classes, or of another model."""

import json
import os
import shutil

import pytest
import tiny_models
from model_helpers import architecture_study
from transformers import CLIPTextConfig, CLIPTextModel

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study

ENTRY, CONFIG = "model_index.json", "config.json"


def edited(source, folder, part, changes):
    """Copy of a model in which a JSON file has other values; the value None removes a key."""
    shutil.copytree(source, folder)
    content = json.loads((folder / part).read_text()) | changes
    content = {key: value for key, value in content.items() if value != "absent"}
    (folder / part).write_text(json.dumps(content))
    return folder


TOKENIZER = "tokenizer/tokenizer_config.json"


@pytest.mark.parametrize(
    ("name", "part", "changes", "words"),
    [
        ("sd1", ENTRY, {"_class_name": ["x"]}, r"class \['x'\] cannot be probed"),
        ("sd1", ENTRY, {"text_encoder": [None, None]}, "no usable entry for text_encoder"),
        ("sd1", ENTRY, {"tokenizer": "absent"}, "no usable entry for tokenizer"),
        ("sd3", ENTRY, {"text_encoder_2": [None, None]}, "no usable entry for text_encoder_2"),
        ("sd3", ENTRY, {"tokenizer_3": [None, None]}, "no usable entry for tokenizer_3"),
        ("flux", ENTRY, {"text_encoder_2": [None, None]}, "no usable entry for text_encoder_2"),
        (
            "sd1",
            ENTRY,
            {"unet": ["diffusers", "AutoencoderKL"]},
            "is not a subclass of UNet2DConditionModel",
        ),
        ("sd1", ENTRY, {"unet": ["os", "system"]}, r"unet \(os\.system is unknown\)"),
        ("sd1", ENTRY, {"unet": ["diffusers", ["a"]]}, "no usable entry for unet"),
        ("sd1", ENTRY, {"vae": "x"}, "no usable entry for vae"),
        ("sd1", ENTRY, {"scheduler": ["diffusers", "Nope"]}, "diffusers.Nope is unknown"),
        ("sd1", "vae/config.json", {"block_out_channels": []}, "no usable sizes"),
        ("sd1", "vae/config.json", {"block_out_channels": None}, "no usable sizes"),
        ("sd1", "vae/config.json", {"latent_channels": "4"}, "latent_channels in vae"),
        ("sd1", "vae/config.json", {"norm_num_groups": 0}, "unusable config .ZeroDivisionError"),
        ("sd1", "unet/config.json", {"attention_head_dim": 0}, "ZeroDivisionError"),
        ("sd1", "unet/config.json", {"cross_attention_dim": 32}, "is 32, but .* width 16"),
        ("sdxl", "unet/config.json", {"cross_attention_dim": 16}, "is 16, but .* width 32"),
        (
            "sdxl",
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 65},
            "projection_class_embeddings_input_dim of the unet .* is 65, but .* width 64",
        ),
        ("sd3", "transformer/config.json", {"pooled_projection_dim": 16}, "is 16, .* width 32"),
        ("sd3", "transformer/config.json", {"joint_attention_dim": 16}, "is 16, .* width 32"),
        ("sd3", "transformer/config.json", {"patch_size": 0}, "no usable sizes"),
        ("flux", "transformer/config.json", {"pooled_projection_dim": 8}, "is 8, .* width 16"),
        ("pixart", "transformer/config.json", {"caption_channels": 8}, "is 8, .* width 16"),
        (
            "sdxl",
            ENTRY,
            {"text_encoder": [None, None], "tokenizer": [None, None]},
            "cross_attention_dim of the unet .* is 32, but .* width 16",
        ),
        ("sd1", TOKENIZER, {"model_max_length": "24"}, "model_max_length that is not a number"),
        ("sd1", TOKENIZER, {"pad_token": None}, "no padding token"),
        ("pixart", TOKENIZER, {"pad_token": None}, "no padding token"),
        ("sd1", "text_encoder/config.json", {"eos_token_id": [1, 2]}, "is not a single token id"),
    ],
)
def test_check_components_refuses(model_folders, tmp_path, name, part, changes, words):
    folder = edited(model_folders[name], tmp_path / "m", part, changes)
    with pytest.raises(UserError, match=rf"^model[^\n]*{words}[^\n]*Fix: "):
        plan_study(architecture_study(folder, name))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("text_encoder/config.json", {"num_attention_heads": 3}, "text_encoder has an unusable"),
        ("text_encoder/config.json", {"num_hidden_layers": "2"}, "text_encoder has an unusable"),
    ],
)
def test_check_weights_lists_configs_that_cannot_be_used(
    model_folders, tmp_path, part, changes, words
):
    folder = edited(model_folders["sd1"], tmp_path / "m", part, changes)
    (missing,) = plan_study(architecture_study(folder, "sd1")).missing
    assert words in missing
    assert "Fix: " in missing


@pytest.mark.parametrize("name", ["sd1", "pixart"])
def test_check_components_refuses_a_tokenizer_without_its_vocabulary(model_folders, tmp_path, name):
    folder = edited(model_folders[name], tmp_path / "m", TOKENIZER, {})
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(UserError, match=r"tokenizer has no vocabulary.*Fix: "):
        plan_study(architecture_study(folder, name))


@pytest.mark.parametrize(
    "part",
    [
        ENTRY, TOKENIZER, "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_plan_refuses_a_config_that_nests_too_deep_for_a_reader(tiny_model, tmp_path, part):
    folder = edited(tiny_model, tmp_path / "m", part, {})
    (folder / part).write_text('{"a":' * 100_000)

    def check():
        plan_study(architecture_study(folder, "sd1")).require_complete()

    with pytest.raises(UserError, match="Fix: "):
        check()


def test_check_weights_lists_a_tokenizer_without_files(model_folders, tmp_path):
    folder = edited(model_folders["sd1"], tmp_path / "m", ENTRY, {})
    shutil.rmtree(folder / "tokenizer")
    (missing,) = plan_study(architecture_study(folder, "sd1")).missing
    assert missing == f"model: {folder / 'tokenizer'} is missing. Fix: fetch it"


def test_check_components_refuses_a_text_encoder_of_another_model(model_folders, tmp_path):
    """Its weights fit its own config, so that only the denoiser's call would fail."""
    folder = edited(model_folders["sd1"], tmp_path / "m", ENTRY, {})
    config = json.loads((folder / "text_encoder" / CONFIG).read_text())
    other = CLIPTextModel(CLIPTextConfig(**{**config, "hidden_size": 32}))
    other.save_pretrained(folder / "text_encoder")
    with pytest.raises(
        UserError, match=r"cross_attention_dim of the unet .* 16, .* width 32\. Fix"
    ):
        plan_study(architecture_study(folder, "sd1"))


def test_check_components_takes_stable_diffusion_3_without_t5(tmp_path):
    pipeline = tiny_models.FAMILIES["sd3"]()
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "m")
    assert not plan_study(architecture_study(tmp_path / "m", "sd3")).missing


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/added_tokens.json", "notes.txt"])
def test_plan_refuses_a_model_folder_with_a_pipe(tiny_model, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"^model\.source: .*{name} is a pipe or a device\. Fix: "):
        plan_study(architecture_study(folder, "sd1"))
