"""Few-step models: LCM, TCD and Turbo, against the images of their own pipelines."""

import diffusers
import further_models
import numpy as np
import pytest
from model_helpers import load_sampler
from own_pipelines import images_of
from run_helpers import generated

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples

KINDS = {  # builder, sampling of the study beyond its defaults, arguments of the pipeline alone
    "lcm": (further_models.lcm, {"guidance": 3.0}, {"guidance_scale": 3.0}),
    "lcm_on_sd1": (further_models.lcm_on_sd1, {"guidance": 1.5}, {"guidance_scale": 1.5}),
    "tcd": (further_models.tcd, {}, {"guidance_scale": 0.0}),
    "turbo": (
        further_models.turbo,
        {"scheduler": "euler-ancestral", "steps": 2, "guidance": 1.0},
        {"guidance_scale": 0.0},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("few")
    return {name: further_models.write(row[0], root / name) for name, row in KINDS.items()}


def study_of(folder, **parts):
    content = {
        "model": {"source": str(folder)},
        "prompts": {"items": ["a ball", "a cone", "a cube"]},
        "sampling": {"threads": 1},
        "controls": {"permuted_weights": False},
    }
    return parse_study(content | parts)


@pytest.mark.parametrize("name", KINDS)
def test_images_of_a_few_step_model_equal_its_pipelines(folders, name):
    _, sampling, arguments = KINDS[name]
    study = study_of(folders[name], sampling={"threads": 1, **sampling})
    plan = plan_study(study)
    assert not plan.missing
    samples = make_samples(study)[:2]
    made = generated(load_sampler(study), samples)
    kind = "LatentConsistencyModelPipeline" if name == "lcm" else "DiffusionPipeline"
    pipe = getattr(diffusers, kind).from_pretrained(folders[name])
    pipe.set_progress_bar_config(disable=True)
    expected = images_of(
        pipe,
        [sample.prompt for sample in samples],
        [sample.seed for sample in samples],
        num_inference_steps=4 if sampling.get("steps") is None else sampling["steps"],
        **({"height": 16, "width": 16} | arguments),
    )
    np.testing.assert_array_equal(made.image, expected)
    assert made.timestep == plan.steps
    # No noise is left after the last step, so that the clean latents predicted there are the image;
    # TCD leaves the noise of the first training step.
    np.testing.assert_allclose(made.clean[:, -1], made.image.astype(int), atol=int(name == "tcd"))


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("lcm", {"sampling": {"steps": 60}}, r"sampling\.steps: .*smaller than"),
        (
            "lcm",
            {"sampling": {"scheduler": "ddim"}},
            r"sampling\.scheduler: .*cannot use DDIM",
        ),
        (
            "lcm",
            {"prompts": {"items": ["a", "b", "c"], "negative": "d"}},
            r"prompts\.negative: .*takes the guidance scale as an input",
        ),
        ("tcd", {"sampling": {"steps": 51}}, r"sampling\.steps: .*smaller than"),
    ],
)
def test_plan_study_refuses_of_a_few_step_model(folders, name, parts, words):
    with pytest.raises(UserError, match=words + ".*Fix: "):
        plan_study(study_of(folders[name], **parts))


def test_source_images_pass_through_a_few_step_model(folders):
    """The step's result is replaced, although the pipeline unpacks two tensors."""
    study = study_of(folders["lcm"])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    made = generated(load_sampler(study), make_samples(study)[:2], images)
    assert (made.image == images).all()
    assert made.trajectory.shape[1] == 4
