"""Tests of models in one safetensors file, against the pipeline that was written into it."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_models
import torch
from ldm_files import write_single_file
from own_pipelines import images_of
from run_helpers import generated
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.models.sources.lookup import source_of
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Model


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = tiny_models.stable_diffusion_1()
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    return pipe


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    """Configs without weights."""
    folder = tmp_path_factory.mktemp("single") / "config"
    pipe.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def file(pipe, folder):
    return write_single_file(pipe, folder.parent / "model.safetensors")


def study_of(file, folder, **model):
    content = {"source": str(file), "config": str(folder), **model}
    return parse_study(
        {
            "model": content,
            "prompts": {"items": ["a ball", "a cone", "a cube"]},
            "sampling": {"scheduler": "pndm", "steps": 2, "guidance": 2.0, "threads": 1},
            "controls": {"permuted_weights": False},
        }
    )


def test_images_of_a_single_file_are_those_of_its_pipeline(pipe, file, folder):
    study = study_of(file, folder)
    assert plan_study(study).missing == ()
    source = source_of(study.model)
    sampler = PipelineSampler(source.load(study, torch.device("cpu")), source.architecture, study)
    samples = make_samples(study)[:2]
    made = generated(sampler, samples)
    expected = images_of(
        pipe,
        [sample.prompt for sample in samples],
        [sample.seed for sample in samples],
        num_inference_steps=2,
        guidance_scale=2.0,
    )
    np.testing.assert_array_equal(made.image, expected)


def test_fingerprint_covers_the_file_and_its_configs(file, folder, tmp_path):
    before = source_of(study_of(file, folder).model).fingerprint()
    tensors = load_file(file)
    tensors["first_stage_model.post_quant_conv.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    other = study_of(tmp_path / "other.safetensors", folder).model
    assert source_of(other).fingerprint() != before


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("model.diffusion_model.middle_block.1", "does not (fit|hold).* UNet2DConditionModel"),
        ("first_stage_model.decoder.mid", "does not (fit|hold).* AutoencoderKL"),
    ],
)
def test_plan_lists_weights_that_a_single_file_lacks(pipe, folder, tmp_path, drop, words):
    broken = write_single_file(pipe, tmp_path / "broken.safetensors", [drop])
    (missing,) = plan_study(study_of(broken, folder)).missing
    assert re.match(rf"model.source: {re.escape(str(broken))} {words}.*Fix: ", missing)


@pytest.mark.parametrize(
    ("part", "setting", "lost"),
    [
        (
            "unet",
            {"mid_block_type": None},
            r"\(mid_block\S*, \.\.\.\) that the UNet2DConditionModel",
        ),
        ("vae", {"use_quant_conv": False}, r"\(quant_conv\S*, \.\.\.\) that the AutoencoderKL"),
    ],
)
def test_plan_lists_tensors_of_a_single_file_without_a_place_in_the_configs(
    file, folder, tmp_path, part, setting, lost
):
    changed = tmp_path / "config"
    shutil.copytree(folder, changed)
    path = changed / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    (missing,) = plan_study(study_of(file, changed)).missing
    assert re.match(
        rf"model.source: {re.escape(str(file))} holds \d+ tensors {lost} .* has no place for\. Fix",
        missing,
    )


def test_plan_lists_a_text_encoder_that_file_and_folder_lack(pipe, folder, tmp_path):
    broken = write_single_file(pipe, tmp_path / "broken.safetensors", ["cond_stage_model"])
    study = study_of(broken, folder)
    (missing,) = plan_study(study).missing
    assert missing.startswith(f"model: {folder / 'text_encoder'} holds no weights")
    pipe.text_encoder.save_pretrained(tmp_path / "config" / "text_encoder")
    shutil.copytree(folder, tmp_path / "config", dirs_exist_ok=True)
    assert plan_study(study_of(broken, tmp_path / "config")).missing == ()


def test_text_encoder_that_a_file_lacks_is_loaded_from_the_folder(pipe, folder, tmp_path):
    without = write_single_file(pipe, tmp_path / "model.safetensors", ["cond_stage_model"])
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    pipe.text_encoder.save_pretrained(config / "text_encoder")
    study = study_of(without, config)
    loaded = source_of(study.model).load(study, torch.device("cpu")).text_encoder
    expected = pipe.text_encoder.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_plan_lists_a_tensor_that_the_text_encoder_of_the_folder_lacks(pipe, folder, tmp_path):
    without = write_single_file(pipe, tmp_path / "model.safetensors", ["cond_stage_model"])
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    pipe.text_encoder.save_pretrained(config / "text_encoder")
    weights = config / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    del state[next(name for name in state if name.endswith("layers.0.mlp.fc1.weight"))]
    save_file(state, weights, metadata={"format": "pt"})
    (missing,) = plan_study(study_of(without, config)).missing
    assert re.match(
        rf"model: {re.escape(str(config))}/text_encoder lacks the tensor \S*fc1\.weight\. Fix",
        missing,
    )


@pytest.mark.parametrize("part", ["final_layer_norm", "encoder.layers.1"])
def test_plan_lists_a_part_of_its_text_encoder_that_a_file_lacks(pipe, folder, tmp_path, part):
    drop = f"cond_stage_model.transformer.text_model.{part}"
    broken = write_single_file(pipe, tmp_path / "broken.safetensors", [drop])
    (missing,) = plan_study(study_of(broken, folder)).missing
    path, tensor = re.escape(str(broken)), re.escape(part)
    words = rf"model\.source: {path} lacks \S*{tensor}\S* of the text_encoder\. Fix: "
    assert re.match(words, missing)


def test_plan_lists_a_text_encoder_of_a_file_with_other_widths_than_its_config(
    file, folder, tmp_path
):
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    path = config / "text_encoder" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"intermediate_size": settings["intermediate_size"] + 8}))
    (missing,) = plan_study(study_of(file, config)).missing
    paths = re.escape(str(file)), re.escape(str(config))
    words = rf"model\.source: {paths[0]} does not fit the text_encoder of {paths[1]} "
    assert re.match(words, missing)


@pytest.fixture
def with_t5(pipe, folder, tmp_path):
    """A file and configs with a T5 text encoder beside CLIP, named as in Stable Diffusion 3."""
    config = tmp_path / "with_t5"
    shutil.copytree(folder, config)
    settings = T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    settings.save_pretrained(config / "text_encoder_3")
    index = json.loads((config / "model_index.json").read_text())
    index["text_encoder_3"] = ["transformers", "T5EncoderModel"]
    (config / "model_index.json").write_text(json.dumps(index))
    tensors = load_file(write_single_file(pipe, tmp_path / "model.safetensors"))
    for name, value in T5EncoderModel(settings).state_dict().items():
        if name != "encoder.embed_tokens.weight":  # Shares the values of `shared.weight`.
            tensors[f"text_encoders.t5xxl.transformer.{name}"] = value.clone()
    return tensors, config, tmp_path / "with_t5.safetensors"


def test_t5_in_a_single_file_is_checked_by_its_names_alone(with_t5, monkeypatch):
    """The T5 of Stable Diffusion 3 has 19 GB in float32, so that it is not built for a check."""
    tensors, config, path = with_t5
    save_file(tensors, path)
    built = []
    initialize = T5EncoderModel.__init__

    def build(self, config):
        initialize(self, config)
        built.append(self)

    monkeypatch.setattr(T5EncoderModel, "__init__", build)
    source_of(Model(source=str(path), config=str(config))).require_weights()
    (network,) = built
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("tensor", "value", "words"),
    [
        ("encoder.final_layer_norm.weight", None, "lacks the tensor encoder.final_layer_norm"),
        ("shared.weight", torch.zeros(33, 8), "shared.weight has shape (33, 8), not (32, 8)"),
        ("encoder.block.2.x.weight", torch.zeros(1), "1 tensor (encoder.block.2.x.weight)"),
    ],
)
def test_tensors_of_t5_in_a_single_file_that_differ_from_its_config(with_t5, tensor, value, words):
    tensors, config, path = with_t5
    name = f"text_encoders.t5xxl.transformer.{tensor}"
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, path)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}\b.*{re.escape(words)}.*Fix: "):
        source_of(Model(source=str(path), config=str(config))).require_weights()


@pytest.mark.parametrize(
    ("source", "config"),
    [("model.ckpt", None), ("model.ckpt", "configs"), ("model.safetensors", None), ("a/b", "c/d")],
)
def test_source_of_refuses(source, config):
    with pytest.raises(UserError, match=r"^model\.config: .*safetensors.*Fix: give both"):
        source_of(Model(source=source, config=config))


def test_the_hash_of_a_study_without_a_single_file_is_as_before():
    """The key is new: it is left out of the hash unless it has a value."""
    study = Study()
    with_config = study.model_copy(update={"model": Model(config="folder")})
    assert '"config"' in study.to_json()
    assert study.hash != with_config.hash


def test_single_file_without_an_encoder_that_its_pipeline_can_do_without(
    pipe, folder, tmp_path, monkeypatch
):
    """As T5 of Stable Diffusion 3; here it is the encoder of Stable Diffusion 1."""
    path = write_single_file(pipe, tmp_path / "model.safetensors", ["cond_stage_model"])
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    index = json.loads((config / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (config / "model_index.json").write_text(json.dumps(index))
    study = study_of(path, config)
    source = source_of(study.model)
    with pytest.raises(UserError, match="does not load"):
        source.load(study, torch.device("cpu"))
    monkeypatch.setattr(type(source.architecture), "optional_encoders", ("text_encoder",))
    loaded = source.load(study, torch.device("cpu"))
    assert loaded.text_encoder is None
    assert loaded.tokenizer is None
    expected = pipe.unet.state_dict()["conv_in.weight"]
    torch.testing.assert_close(loaded.unet.state_dict()["conv_in.weight"], expected)
