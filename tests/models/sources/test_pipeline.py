"""Tests of pipeline objects as models: their digest, and what is refused before a run."""

import diffusers
import pytest
import tiny_models
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from own_pipelines import adapted_pipeline
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.sources.digest import pipeline_digest
from ldmprobe_core.models.sources.pipeline import PipelineSource
from ldmprobe_core.models.timesteps import timesteps
from ldmprobe_core.study.schema import Study

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def pipe():
    return adapted_pipeline()


def test_pipeline_digest_is_the_same_after_a_call_and_in_another_folder(tmp_path):
    torch.manual_seed(0)
    pipe = tiny_models.stable_diffusion_1()
    digest = pipeline_digest(pipe)
    pipe(["a ball"], num_inference_steps=1, output_type="latent")
    assert pipeline_digest(pipe) == digest
    for name in ("one", "two"):
        pipe.save_pretrained(tmp_path / name, safe_serialization=True)
    one, two = (type(pipe).from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert pipeline_digest(one) == pipeline_digest(two)


@pytest.mark.parametrize(
    "name", ["DDIM", "PNDM", "EulerDiscrete", "DPMSolverMultistep", "LCM", "TCD"]
)
def test_pipeline_source_takes_a_scheduler_that_has_been_in_use(name):
    pipe = adapted_pipeline()
    kind = getattr(diffusers, f"{name}Scheduler")
    levels = {"trained_betas": torch.linspace(1e-4, 0.03, 1000).tolist()}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **levels)
    pipe.scheduler.set_timesteps(3)
    PipelineSource(pipe)


def edit_weight(pipe):
    next(pipe.vae.decoder.parameters()).data.flatten()[0] += 1e-3


def scale_adapter(pipe):
    pipe.unet.get_submodule(MIDDLE).to_v.scale = 2.9


def change_scheduler(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)


def change_scheduler_key(pipe):
    pipe.scheduler.register_to_config(timestep_spacing="trailing")


def free_u(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def add_hook(pipe):
    pipe.unet.mid_block.register_forward_hook(lambda module, inputs, output: output * 2)


def add_word(pipe):
    pipe.tokenizer.add_tokens(["zebra"])


def half(pipe):
    pipe.unet.half()


@pytest.mark.parametrize(
    "change",
    [edit_weight, scale_adapter, change_scheduler, change_scheduler_key, free_u, add_hook, add_word,
     half],
)  # fmt: skip
def test_pipeline_digest_differs_after(change):
    pipe = adapted_pipeline()
    digest = pipeline_digest(pipe)
    change(pipe)
    assert pipeline_digest(pipe) != digest


def lose_vae(pipe):
    pipe.vae = None


def wrap(pipe):
    pipe.unet = nn.Sequential(pipe.unet)


def other_network(pipe):
    pipe.unet = pipe.vae


def double(pipe):
    pipe.unet.double()


def train_with_dropout(pipe):
    pipe.unet.train()
    pipe.unet.get_submodule(MIDDLE).to_out[1].p = 0.1


def offload(pipe):
    pipe.text_encoder._hf_hook = object()


def shift_after_building(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe.scheduler.set_shift(3.0)


def rescale_noise(pipe):
    """As recipes for a signal-to-noise ratio of zero at the last step do."""
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod * 0.9


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (rescale_noise, r"scheduler's alphas_cumprod differs from that of the scheduler's config"),
        (shift_after_building, r"scheduler has shift 3\.0, but .* has shift 1\.0"),
        (lose_vae, "vae is missing"),
        (wrap, "one of its networks has no config"),
        (other_network, "unet is a AutoencoderKL, not a UNet2DConditionModel"),
        (double, "unet is in float64"),
        (train_with_dropout, "unet is in training mode"),
        (offload, "text_encoder is offloaded"),
    ],
)
def test_pipeline_source_refuses(break_it, words):
    pipe = adapted_pipeline()
    break_it(pipe)
    with pytest.raises(UserError, match=rf"^pipeline: (its )?{words}.*Fix: "):
        PipelineSource(pipe)


def test_study_of_takes_model_and_scheduler_from_the_pipeline(pipe):
    source = PipelineSource(pipe)
    study = source.study_of(Study())
    assert study.model.source == source.name == f"pipeline:{pipeline_digest(pipe)}"
    assert (study.model.dtype, study.sampling.scheduler) == ("float32", "pipeline")
    assert source.study_of(study) == study
    other = study.model_copy(
        update={"model": study.model.model_copy(update={"source": "pipeline:0123"})}
    )
    with pytest.raises(UserError, match=r"the study's model \(pipeline:0123.*Fix: "):
        source.study_of(other)
    sliced = Study(model={"attention_slicing": True})
    with pytest.raises(UserError, match=r"model\.attention_slicing: .*loaded already"):
        source.study_of(sliced)


def test_study_of_refuses_random_weights_of_a_denoiser_with_adapters(pipe):
    study = Study(controls={"permuted_weights": False, "random_weights": True})
    with pytest.raises(UserError, match=r"controls\.random_weights: the UNet2D.* has adapters"):
        PipelineSource(pipe).study_of(study)
    plain = PipelineSource(tiny_models.stable_diffusion_1())
    assert plain.study_of(study).controls.random_weights is not None


def test_networks_have_the_adapters_shapes_without_data(pipe):
    denoiser, vae = PipelineSource(pipe).networks()
    real = dict(pipe.unet.named_parameters())
    copied = dict(denoiser.named_parameters())
    assert f"{MIDDLE}.to_v.down.weight" in copied
    assert {name: p.shape for name, p in real.items()} == {n: p.shape for n, p in copied.items()}
    assert {p.device.type for p in (*denoiser.parameters(), *vae.parameters())} == {"meta"}
    assert {p.device.type for p in real.values()} == {"cpu"}


def test_a_study_cannot_name_the_scheduler_of_a_pipeline_without_one():
    with pytest.raises(ValueError, match=r"the scheduler pipeline belongs to pipeline objects"):
        Study(sampling={"scheduler": "pipeline"})
    with pytest.raises(ValueError, match=r"belongs to pipeline objects.*pipeline=pipe"):
        Study(model={"source": "pipeline:0123"}, sampling={"scheduler": "ddim"})


def test_timesteps_of_a_pipeline_are_those_of_its_own_scheduler():
    own = adapted_pipeline()
    own.scheduler = DPMSolverMultistepScheduler.from_config(
        own.scheduler.config, timestep_spacing="trailing"
    )
    source = PipelineSource(own)
    planned = timesteps(source.architecture, source.study_of(Study(sampling={"steps": 4})))
    own.scheduler.set_timesteps(4)
    assert planned == own.scheduler.timesteps.tolist()


def test_a_scheduler_that_diffusers_does_not_have_is_refused():
    class Mine(DDIMScheduler):
        pass

    own = adapted_pipeline()
    own.scheduler = Mine.from_config(own.scheduler.config)
    source = PipelineSource(own)
    with pytest.raises(UserError, match=r"^pipeline: its scheduler is a Mine.*Fix: "):
        timesteps(source.architecture, source.study_of(Study(sampling={"steps": 4})))
