"""The examples run as they stand, on the embedded model, small."""

from pathlib import Path

import numpy as np
import pytest

from examples import (
    compare_runs,
    first_study,
    own_classes,
    own_labels,
    own_number,
    own_pipeline,
    own_property,
    sparse_autoencoder,
)

pytestmark = pytest.mark.slow

TINY = {
    "prompts.samples": 24,
    "sampling.steps": 3,
    "capture.layers": ["mid_block*attn1"],
    "controls.permuted_weights": False,
    "bootstrap.resamples": 100,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Folder of runs that both studies share: the second finds the first's run finished."""
    return str(tmp_path_factory.mktemp("runs"))


def test_first_study_runs_and_writes_its_report(store, capsys):
    run = first_study.main("tabletop", store, TINY)
    printed = capsys.readouterr().out
    assert "24 samples, 3 steps, 1 layer, 3 cells" in printed
    assert (Path(run.url) / "report" / "index.html").is_file()
    assert set(run.summary.properties) == {"foreground", "depth", "shading"}


def test_compare_runs_pairs_the_same_samples(store):
    rows = compare_runs.main(store, TINY)
    assert [row["property"] for row in rows[::2]] == ["foreground", "depth", "shading"]
    assert all(int(row["pairs"]) > 2 for row in rows[1::2])


def test_own_pipeline_scores_every_layer():
    scores = own_pipeline.main(steps=3)
    assert len(scores) == 7
    assert all(-1 <= score <= 1 for score in scores.values())


def test_own_labels_are_the_luminance_of_the_stored_images(store):
    run = own_labels.main(store, {**TINY, "trajectory.samples": 6, "trajectory.training": 0})
    red, green, blue = np.moveaxis(run.open("images").image.values.astype(float), -1, 0)
    expected = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
    np.testing.assert_allclose(run.open("labels").shading, expected, rtol=1e-5)
    assert list(run.summary.properties) == ["shading"]


def test_sparse_autoencoder_explains_more_than_the_mean(store):
    run = first_study.main("tabletop", store, TINY)  # finished by the first test
    assert 0 < sparse_autoencoder.main(run.url) < 1


def test_own_property_probes_pixels_of_warm_colours(store, capsys):
    run = own_property.main(store, {**TINY, "labels.depth": None, "labels.shading": None})
    images = run.read("images", "image").astype(float)
    assert (run.read("labels", "warm") == (images[..., 0] - images[..., 2] > 20)).all()
    assert "shuffled_labels: " in capsys.readouterr().out


def test_own_classes_are_scored_together(store, capsys):
    run = own_classes.main(store, TINY)
    names = [f"parts_{part}" for part in ("wall", "floor", "thing")]
    maps = np.stack([run.read("labels", name) for name in names])
    np.testing.assert_array_equal(maps.sum(0), 1)
    assert list(run.summary.class_maps["parts"].best.by_class) == names
    assert "mean IoU: " in capsys.readouterr().out


def test_own_number_is_the_share_of_the_foreground(store, capsys):
    run = own_number.main(store, {**TINY, "controls.permutations": 4})
    masks = run.read("labels", "foreground") > 0.5
    np.testing.assert_allclose(run.read("labels", "size"), masks.mean((1, 2)), rtol=1e-6)
    assert len(run.summary.numbers["size"].shuffled) == 4
    assert "rank correlation: " in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(Path(first_study.__file__).parent.glob("*.py")))
def test_an_example_is_short(path):
    lines = path.read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 30
