"""Depth order of pairs of objects: by hand, and from a small run (benchmarks/pairwise_depth.py)."""

import json

import numpy as np
import pytest

import ldmprobe as lp
from benchmarks.pairwise_depth import Pairs, balance, main, object_means, pairs_of


def box(top, left, height=4, width=4):
    """Mask of a rectangle in an image of 20 x 20 pixels."""
    mask = np.zeros((20, 20), bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = np.stack([
    box(4, 0),  # rows 4 to 7, centre 5.5
    box(5, 8),  # centre 6.5: one row lower, which is 0.05 of the height
    box(12, 0),  # centre 13.5
    box(5, 15, height=2, width=2),  # centre 5.5, but only 4 pixels
])  # fmt: skip


def test_pairs_of_takes_centres_within_the_tolerance_and_leaves_out_small_objects():
    assert pairs_of(MASKS) == [(0, 1)]
    assert pairs_of(MASKS, 0.049) == []
    assert pairs_of(MASKS, 1.0) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of(MASKS[:0]) == []


def test_object_means_by_hand():
    depth = np.arange(400.0).reshape(20, 20)
    # Rows 4 to 7 and columns 0 to 3: 20 * 5.5 + 1.5.
    np.testing.assert_array_equal(object_means(depth, MASKS[:1]), [111.5])
    np.testing.assert_array_equal(object_means(depth, np.zeros((1, 20, 20), bool)), [np.nan])


def test_pairs_scores_by_hand():
    """Two images with one pair each, of which the second object is nearer in the second image."""
    depth = np.zeros((3, 20, 20))
    depth[0, MASKS[0]], depth[0, MASKS[1]] = 1, 2
    depth[1, MASKS[0]], depth[1, MASKS[1]] = 3, 2
    # In the third image both objects have one depth, so that they have no order.
    pairs = Pairs.of_images(depth, [MASKS[:2]] * 3)
    assert pairs.image.tolist() == [0, 1]
    assert pairs.objects.tolist() == [[0, 1], [0, 1]]
    assert pairs.difference.tolist() == [-1, 1]
    right, wrong, equal = np.array([5.0, 6.0]), np.array([6.0, 5.0]), np.array([5.0, 5.0])
    assert pairs.scores([right, right, right]).tolist() == [1, 0]
    assert pairs.scores([wrong, wrong, wrong]).tolist() == [0, 1]
    assert pairs.scores([equal, wrong, right]).tolist() == [0.5, 1]


def test_pairs_of_images_without_pairs_has_none():
    pairs = Pairs.of_images(np.zeros((1, 20, 20)), [MASKS[2:]])
    assert pairs.scores([np.zeros(2)]).shape == (0,)


def test_balance_averages_the_pairs_that_position_orders_rightly_and_wrongly():
    position = np.array([1, 1, 1, 0, 0.5])
    scores = np.array([1, 1, 0, 0.5, 1])
    balanced = balance(scores, position)
    assert np.nanmean(balanced) == pytest.approx((2 / 3 + 0.5) / 2)
    assert np.isnan(balanced).tolist() == [False] * 4 + [True]
    assert np.nanmean(balance(position, position)) == 0.5
    assert np.nanmean(balance(1 - position, position)) == 0.5
    assert np.isnan(balance(scores[:3], position[:3])).all()  # position orders no pair wrongly


@pytest.mark.slow
def test_main_renders_runs_and_scores(tmp_path, capsys):
    settings = ["sampling.steps=2", "sampling.batch=10", "bootstrap.resamples=200"]
    settings += ['capture.layers=["up_blocks.2.attentions.0.*.attn1"]']
    options = [part for value in settings for part in ("--set", value)]
    main(["--store", str(tmp_path), "--images", "40", *options])
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    same = scores["at the same height"]
    assert scores["test images"] == 20
    assert 5 <= same["images"] <= same["pairs"] < scores["at any heights"]["pairs"]
    assert f"{same['pairs']} in {same['images']} images; chance 0.50" in printed

    [run] = [lp.open_run(str(path)) for path in (tmp_path / "runs").glob("several-objects-*")]
    probe = run.probe("depth", 2, scores["layer"])
    tokens = run.activations(scores["layer"]).sel(step=2)
    training = [s.index for s in run.samples if s.split == "train"]
    mean = run.read("labels", "depth")[training].mean(0)
    right, of_position = [], []
    for sample in run.samples:
        if sample.split != "test":
            continue
        stem = sample.source_image.removesuffix(".png")
        depth = np.load(tmp_path / f"several_objects/images/{stem}.depth.npy")
        masks = np.load(tmp_path / f"several_objects/objects/{stem}.npy")
        predicted = probe.predict(tokens.sel(sample=[sample.index]).values)[0]
        predicted = np.kron(predicted, np.ones((4, 4)))
        for i in range(len(masks)):
            for j in range(i):
                a, b = masks[i], masks[j]
                if abs(np.nonzero(a)[0].mean() - np.nonzero(b)[0].mean()) <= 3.2:
                    farther = depth[a].mean() > depth[b].mean()
                    right.append((predicted[a].mean() > predicted[b].mean()) == farther)
                    of_position.append((mean[a].mean() > mean[b].mean()) == farther)
    last = same["steps"][-1]
    assert len(right) == same["pairs"]
    assert last["probe"]["mean"] == pytest.approx(np.mean(right))
    assert same["baselines"]["position"]["mean"] == pytest.approx(np.mean(of_position))
    right, of_position = np.array(right), np.array(of_position)
    halves = right[of_position].mean(), right[~of_position].mean()
    assert last["balanced"]["mean"] == pytest.approx(np.mean(halves))
    assert last["probe"]["low"] <= last["probe"]["mean"] <= last["probe"]["high"]

    main(["--store", str(tmp_path / "again"), "--run", run.url])
    assert printed.endswith(capsys.readouterr().out)
    (tmp_path / f"several_objects/images/{stem}.depth.npy").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["--store", str(tmp_path / "again"), "--run", run.url])
    assert stopped.value.code == 2
    assert "has changed since the run. Fix: restore it" in capsys.readouterr().err


def test_main_refuses_a_run_of_generated_images(finished_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--store", str(tmp_path), "--run", finished_run.url])
    assert stopped.value.code == 2
    assert "run: its study is not of the depth of source images" in capsys.readouterr().err
