"""Tests of studies of a pipeline object, against the pipeline's own images."""

import numpy as np
import pytest
from own_pipelines import adapted_pipeline, images_of

import ldmprobe as lp
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import parse_study


@pytest.fixture(scope="module")
def pipe():
    return adapted_pipeline()


@pytest.fixture(scope="module")
def study():
    return parse_study(
        {
            "name": "own",
            "prompts": {"samples": 8},
            "sampling": {"steps": 2, "batch": 4, "guidance": 2.0, "threads": 1},
            "capture": {"layers": ["mid_block.*.attn1"]},
            "trajectory": {"samples": 2, "training": 0},
            "labels": {"foreground": None, "shading": None, "class": None},
            "probes": {"kinds": ["ridge"]},
            "controls": {"mlp": False, "permuted_weights": False, "permutations": 1},
            "bootstrap": {"resamples": 200},
        }
    )


@pytest.fixture(scope="module")
def run(study, pipe, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("runs"))
    return lp.run_study(study, store, progress=False, pipeline=pipe)


def test_run_study_of_a_pipeline_gives_its_own_images(run, pipe):
    stored = run.read("images", "image")
    for batch in run.study.batches(len(run.samples)):
        samples = [run.samples[i] for i in batch]
        expected = images_of(
            pipe,
            [sample.prompt for sample in samples],
            [sample.seed for sample in samples],
            num_inference_steps=2,
            guidance_scale=2.0,
        )
        np.testing.assert_array_equal(stored[batch.start : batch.stop], expected)


def test_run_study_resumes_the_run_of_the_same_pipeline_only(run, study, pipe):
    store = run.url.rpartition("/")[0]
    assert lp.run_study(study, store, progress=False, pipeline=pipe).url == run.url
    assert lp.run_study(run.study, store, progress=False, pipeline=pipe).url == run.url
    other = adapted_pipeline()
    other.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.scale = 1.0
    with pytest.raises(
        lp.UserError, match=r"pipeline: it is pipeline:\w{16}, but the study's model is"
    ):
        lp.run_study(run.study, store, progress=False, pipeline=other)
    planned = lp.plan(study, pipeline=other)
    assert planned.study.hash != run.study.hash
    assert "missing" not in str(planned)


def test_a_run_of_a_pipeline_is_reported_without_it(run):
    page = lp.write_report(lp.open_run(run.url))
    assert run.study.model.source in lp.open_run(run.url).location.read_text("study.json")
    assert page.endswith("index.html")


def test_a_study_of_a_pipeline_is_refused_without_it(run):
    elsewhere = parse_study(run.study.model_dump(mode="json", by_alias=True))
    assert elsewhere == run.study
    with pytest.raises(lp.UserError, match=r"only the process that holds it.*Dask.*pipeline=pipe"):
        plan_study(elsewhere)


def test_intervene_takes_the_pipeline_of_the_run(run, pipe):
    settings = {"shift": (0.2, 0.0), "samples": 1}
    with pytest.raises(lp.UserError, match=r"only the process that holds it"):
        lp.intervene(run, "depth", **settings)
    summary = lp.intervene(run, "depth", pipeline=pipe, **settings)
    assert summary.effects["edited"].mean is not None
