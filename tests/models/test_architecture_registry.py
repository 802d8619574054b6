"""Registry of architectures: detection, registration, and a study with a registered one."""

import json
import shutil

import numpy as np
import pytest
import tiny_models
from diffusers import StableDiffusionPipeline
from model_helpers import architecture_study
from run_helpers import carry_out

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.architectures.registry import (
    architecture_of,
    detect_architecture,
    register_architecture,
)
from ldmprobe_core.models.architectures.stable_diffusion import StableDiffusion, UNetArchitecture
from ldmprobe_core.pipeline.planning.plan import plan_study


class TwinPipeline(StableDiffusionPipeline):
    """Pipeline class that the registry does not know."""


class TwinArchitecture(UNetArchitecture):
    """Architecture of `TwinPipeline`, with a preset of its own."""

    pipeline_class = TwinPipeline
    load_arguments = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012
    presets = {"middle": ("mid_block.*.attn1",)}  # noqa: RUF012


@pytest.fixture
def twin_folder(tmp_path):
    """The tiny model, saved as a `TwinPipeline`."""
    folder = tiny_models.write_tiny_model(tmp_path / "twin")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "TwinPipeline"}))
    return folder


def test_register_architecture_alone_adds_one_that_a_study_runs_with(
    twin_folder, tiny_study, tmp_path
):
    with pytest.raises(
        UserError, match=r"class TwinPipeline cannot be probed\. Fix: use one of Stable"
    ):
        detect_architecture(twin_folder)
    register_architecture("TwinPipeline")(TwinArchitecture)
    assert isinstance(detect_architecture(twin_folder), TwinArchitecture)
    study = tiny_study(model={"source": str(twin_folder)}, capture={"layers": ["middle"]})
    run = carry_out(study, str(tmp_path / "runs"))
    assert run.layers == ["mid_block.attentions.0.transformer_blocks.0.attn1"]
    assert np.isfinite(run.open(f"activations/{run.layers[0]}").activation).all()


def test_architecture_is_abstract(tiny_model):
    with pytest.raises(TypeError, match="abstract"):
        Architecture.from_folder("StableDiffusionPipeline", tiny_model)


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_architecture_of_a_pipeline_equals_that_of_its_folder(name, tmp_path):
    folder = tiny_models.write(name, tmp_path / name)
    pipeline = tiny_models.FAMILIES[name]()
    live, read = architecture_of(pipeline), detect_architecture(folder)
    assert type(live) is type(read)
    for part in ("config", "vae", "scheduler"):
        expected, config = getattr(read, part), json.loads(json.dumps(getattr(live, part)))
        shared = expected.keys() & config.keys() - {"_use_default_values", "_name_or_path"}
        assert {"_class_name"} < shared
        assert {key: config[key] for key in shared} == {key: expected[key] for key in shared}
    assert (live.size, live.grid) == (read.size, read.grid)


def test_architecture_of_takes_the_nearest_base_class():
    class DerivedPipeline(StableDiffusionPipeline):
        pass

    parts = tiny_models.stable_diffusion_1().components
    pipeline = DerivedPipeline(**parts, requires_safety_checker=False)
    assert type(architecture_of(pipeline)) is StableDiffusion
    with pytest.raises(UserError, match="pipeline: class object cannot be probed"):
        architecture_of(object())


def test_folders_that_are_no_supported_pipeline_are_refused(model_folders, tmp_path):
    for change, words in (
        (lambda f: (f / "model_index.json").write_text("{"), "does not name a pipeline"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "WanPipeline"}'),
            "class WanPipeline cannot be probed. Fix: use one of StableDiffusionPipeline",
        ),
        (lambda f: (f / "unet" / "config.json").unlink(), "so the model folder is incomplete"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), "cannot be read"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(model_folders["sd1"], folder)
        change(folder)
        with pytest.raises(UserError, match=words):
            plan_study(architecture_study(folder, "sd1"))
    folder = tmp_path / "pickled"
    shutil.copytree(model_folders["sd1"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    plan = plan_study(architecture_study(folder, "sd1"))
    assert any("safetensors" in sentence for sentence in plan.missing)
    config = json.loads((model_folders["sd1"] / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "norm_num_groups": 7}))
    with pytest.raises(UserError, match="unusable config"):
        plan_study(architecture_study(folder, "sd1"))
