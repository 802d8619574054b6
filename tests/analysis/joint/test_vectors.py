"""Joint scores of vector properties: cosines and angles, and a study of a user's own vector."""

import sys

import numpy as np
import pytest
from joint_probes import BOOTSTRAP, CHOSEN, IS_TEST, GivenProbes, given_tokens
from run_helpers import carry_out

import ldmprobe as lp
from ldmprobe_core.analysis.joint import vectors
from ldmprobe_core.analysis.joint.vectors import (
    mean_angle,
    mean_cosine,
    unit_vectors,
    vector_records,
)
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.probing.neighbourhood import neighbourhoods
from ldmprobe_core.study.extensions.joint import components_of, joint_properties
from ldmprobe_core.study.samples import make_samples

MODULE = """
import numpy as np

calls = []

def slope(images):
    calls.append(len(images))
    grey = images.astype(np.float32).mean(-1)
    down, across = np.gradient(grey, axis=(1, 2))
    return np.stack([down, across, np.ones_like(grey)], -1)
"""


def test_mean_cosine_equals_a_loop_over_pixels_and_skips_unmeasured_ones():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 2, 4, 3))
    truth = unit_vectors(rng.normal(size=(3, 6, 8, 3)))
    truth[0, :2, 3] = np.nan
    truth[1, 3, 5, 1] = np.nan  # one unknown component makes the direction unknown
    truth[2] = np.nan
    cosines, angles = [], []
    for one, maps in zip(tokens, truth, strict=True):
        of_pixels = []
        for y, x in np.ndindex(6, 8):
            guess = one[y // 3, x // 2]
            if not np.isnan(maps[y, x]).any():
                of_pixels.append(guess @ maps[y, x] / np.sqrt(guess @ guess))
        cosines.append(np.mean(of_pixels) if of_pixels else np.nan)
        angles.append(np.mean(np.degrees(np.arccos(of_pixels))) if of_pixels else np.nan)
    np.testing.assert_allclose(mean_cosine(tokens, truth), cosines, rtol=1e-12)
    predicted = tokens.repeat(3, 1).repeat(2, 2)
    np.testing.assert_allclose(mean_angle(predicted, truth), angles, rtol=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0])
def test_mean_angle_of_rotated_vectors_is_the_rotation(degrees):
    turn = np.radians(degrees)
    truth = np.broadcast_to([1.0, 0.0, 0.0], (1, 2, 2, 3))
    predicted = np.broadcast_to([7 * np.cos(turn), 7 * np.sin(turn), 0.0], (1, 2, 2, 3))
    np.testing.assert_allclose(mean_angle(predicted, truth), degrees, atol=1e-5)
    np.testing.assert_allclose(mean_cosine(predicted, truth), np.cos(turn), atol=1e-12)


def test_surface_normals_are_a_built_in_vector():
    names = ("normals_x", "normals_y", "normals_z")
    assert components_of("normals") == names
    assert joint_properties(("depth", *names), "vector") == {"normals": names}
    assert joint_properties(("depth", *names), "classes") == {}
    assert joint_properties(names[:2], "vector") == {}


def angles(predicted, truth):
    """Mean angle of each test sample, in degrees, from the lengths of cross and dot products."""
    cross = np.linalg.norm(np.cross(predicted, truth), axis=-1)
    return np.degrees(np.arctan2(cross, (predicted * truth).sum(-1))).mean((1, 2))


def test_cells_are_chosen_on_validation_samples_and_differences_are_best_less_other(monkeypatch):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(32, 2, 2, 3))
    tokens, labels = given_tokens(unit_vectors(true)), true.repeat(2, 1).repeat(2, 2)
    mean = rng.normal(size=(4, 4, 3))
    exact = labels[IS_TEST] + rng.normal(0, 0.3, (20, 4, 4, 3))
    probes = GivenProbes(("x", "y", "z"), tokens, labels, mean, exact)
    probes.put_into(vectors, monkeypatch)
    record = vector_records(probes.run, probes.labels, IS_TEST, BOOTSTRAP)["given"]

    def predicted(name, step):
        return tokens[name][step - 1, IS_TEST].repeat(2, 1).repeat(2, 2)

    truth = labels[IS_TEST]
    best, latents = (predicted(name, CHOSEN[name]) for name in ("b", "latents"))
    of_best, of_latents, of_mean = (angles(one, truth) for one in (best, latents, mean[None]))
    assert (record.best.layer, record.best.step) == ("b", CHOSEN["b"])
    assert record.inputs["latents"].step == CHOSEN["latents"]
    for given, expected in [
        (record.best.degrees, of_best.mean()),
        (record.inputs["latents"].degrees, np.nanmean(of_latents)),
        (record.position, of_mean.mean()),
        (record.less_position, (of_best - of_mean).mean()),
        # Both sides are means over the images for which the control has predictions.
        (record.less_inputs["latents"], np.nanmean(of_best - of_latents)),
        (record.exact.best, angles(best, exact).mean()),
        (record.exact.position, angles(mean[None], exact).mean()),
        (record.exact.labeler, angles(truth, exact).mean()),
    ]:
        assert given.mean == pytest.approx(expected, rel=1e-9)
    for step, one in enumerate(record.steps, start=1):
        of_step = unit_vectors(predicted("b", step)) * unit_vectors(truth)
        assert one.mean == pytest.approx(of_step.sum(-1).mean(), rel=1e-12)


@pytest.fixture
def module(own_module):
    own_module("slopes_of_hers", MODULE)


def test_declared_vector_is_probed_by_component_and_scored_by_direction(
    tiny_study, tmp_path, module
):
    vector = {"kind": "vector", "components": ["down", "across", "up"]}
    study = tiny_study(
        properties={"slope": {**vector, "labeler": "slopes_of_hers:slope"}},
        labels={"foreground": None, "depth": None, "shading": None, "class": None},
        probes={"kinds": ["ridge"]},
        controls={"permuted_weights": False, "permutations": 2, "clean_pixels": False},
    )
    run = carry_out(study, str(tmp_path / "runs"))
    build_report(run, {})
    # Beside a trial image, every image was labeled once, for all three components: 12 final images,
    # of which one was labeled again alone, and the step images and predicted clean images of 3
    # steps.  The last step image is the final image.
    chosen = run.open("step_images").sizes["sample"]
    assert sum(sys.modules["slopes_of_hers"].calls) == 1 + 12 + 1 + chosen * (2 + 3)

    record = load_summary(run).vectors["slope"]
    parts = ["slope_down", "slope_across", "slope_up"]
    assert (record.components, record.kind, record.exact) == (parts, "ridge", None)
    assert set(record.inputs) == {"latents"} == set(record.less_inputs)

    # By hand: the angle of the best cell, from the stored probes and the images.
    images = run.read("images", "image").astype(np.float32).mean(-1)
    down, across = np.gradient(images, axis=(1, 2))
    truth = unit_vectors(np.stack([down, across, np.ones_like(down)], -1))
    activations = run.read(f"activations/{record.best.layer}", "activation")
    tokens = activations[:, record.best.step - 1].astype(np.float64)
    probes = [
        lp.open_run(run.url).probe(part, record.best.step, record.best.layer) for part in parts
    ]
    test = [i for i, sample in enumerate(make_samples(study)) if sample.split == "test"]
    angles, baseline = [], []
    train = [i for i, sample in enumerate(make_samples(study)) if sample.split == "train"]
    mean = np.stack([down, across, np.ones_like(down)], -1)[train].mean(0)
    for sample in test:
        of_pixels, of_mean = [], []
        _, height, width, _ = truth.shape
        for y, x in np.ndindex(height, width):
            row, column = y * tokens.shape[1] // height, x * tokens.shape[2] // width
            guess = np.array(
                [
                    tokens[sample, row, column] @ probe.weight
                    + np.broadcast_to(probe.offset, tokens.shape[1:3])[row, column]
                    for probe in probes
                ]
            )
            for known, values in ((guess, of_pixels), (mean[y, x], of_mean)):
                cosine = known @ truth[sample, y, x] / np.linalg.norm(known)
                values.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        angles.append(np.mean(of_pixels))
        baseline.append(np.mean(of_mean))
    assert record.best.degrees.mean == pytest.approx(np.mean(angles), rel=1e-4)
    assert record.position.mean == pytest.approx(np.mean(baseline), rel=1e-4)
    gap = np.mean(angles) - np.mean(baseline)
    assert record.less_position.mean == pytest.approx(gap, rel=1e-3, abs=1e-3)
    assert len(record.steps) == 3

    # The latents at their own step, compared with the layer: angle of the layer less theirs.
    step = record.inputs["latents"].step
    tokens = neighbourhoods(
        run.read("activations/latents", "activation")[test, step - 1].astype(float), 5
    )
    probes = [lp.open_run(run.url).probe(part, step, "latents") for part in parts]
    guess = np.stack([tokens @ probe.weight + probe.offset for probe in probes], -1)
    factor = truth.shape[1] // guess.shape[1], truth.shape[2] // guess.shape[2]
    guess = guess.repeat(factor[0], 1).repeat(factor[1], 2)
    cosine = (guess * truth[test]).sum(-1) / np.linalg.norm(guess, axis=-1)
    of_latents = np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean((1, 2))
    assert record.inputs["latents"].degrees.mean == pytest.approx(of_latents.mean(), rel=1e-4)
    gap = np.mean(angles) - of_latents.mean()
    assert abs(gap) > 0.1
    assert record.less_inputs["latents"].mean == pytest.approx(gap, rel=1e-3, abs=1e-3)
    assert "slope (slope_down, slope_across, slope_up)" in run.location.read_text(
        "report/index.html"
    )
