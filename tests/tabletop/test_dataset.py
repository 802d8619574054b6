"""Rendered datasets on disk, and batches of them."""

import numpy as np
import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.prompt_sets import CATEGORIES
from ldmprobe_core.tabletop import render
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset, shuffled_batches
from ldmprobe_core.tabletop.scenes import sample_scene, scene_caption


def test_render_dataset_resumes_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("ldmprobe_core.tabletop.dataset.BLOCK", 4)
    render_dataset(tmp_path, 10, processes=1)
    data = Dataset(tmp_path, held_out=3)
    first = render.render(sample_scene(7))
    np.testing.assert_array_equal(data.rgb[7], np.rint(first.rgb * 255))
    assert CATEGORIES[data.category[7]] == sample_scene(7).category
    assert data.captions()[7] == scene_caption(sample_scene(7))
    assert list(data.train) == list(range(7))
    done = []
    (tmp_path / "done-000004").unlink()
    with pytest.raises(UserError, match=r"1 of 3 blocks of scenes are not rendered\. Fix: add"):
        Dataset(tmp_path, held_out=3)
    render_dataset(tmp_path, 10, processes=1, progress=done.append)
    assert done == [4]
    with pytest.raises(UserError, match=r"it has 10 scenes, .* asked for \(11\)\. Fix: ask for 10"):
        render_dataset(tmp_path, 11, processes=1)
    with pytest.raises(UserError, match=r"10 scenes leave none to train on, since 10 are .*Fix: "):
        Dataset(tmp_path, held_out=10)
    (tmp_path / "normal.npy").unlink()
    with pytest.raises(UserError, match=r"normal\.npy is missing"):
        render_dataset(tmp_path, 10, processes=1)


def test_shuffled_batches_of_more_than_there_is_are_refused():
    assert sorted(next(shuffled_batches(3, 3, seed=1))) == [0, 1, 2]
    with pytest.raises(UserError, match=r"3 scenes to train on are fewer than a batch \(4\)\. Fix"):
        next(shuffled_batches(3, 4, seed=1))


def test_shuffled_batches_cover_each_epoch_and_can_start_midway():
    batches = shuffled_batches(10, 3, seed=1)
    drawn = [next(batches) for _ in range(7)]
    assert len(np.unique(np.concatenate(drawn[:3]))) == 9
    later = shuffled_batches(10, 3, seed=1, start=4)
    for expected in drawn[4:]:
        np.testing.assert_array_equal(next(later), expected)
