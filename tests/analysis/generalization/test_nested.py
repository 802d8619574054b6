"""Learning curves and description lengths over nested sets of training images."""

import numpy as np
import pytest
from cell_data import cell_samples, predict_slowly, probe_on_pixels, refit_data
from scipy.stats import spearmanr

from ldmprobe_core.analysis.generalization.description import code_lengths
from ldmprobe_core.analysis.generalization.nested import (
    DRAWS,
    NestedBlocks,
    block_ends,
    code_length_record,
    learning_record,
)
from ldmprobe_core.analysis.generalization.refits import TestScorer
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.probe_sections import BootstrapSettings

SETTINGS = BootstrapSettings(resamples=100)
TEST = np.arange(28, 40)


def nested(prop):
    return NestedBlocks(refit_data(prop), cell_samples(), seed=4)


def bootstrap_of(members):
    samples = cell_samples()
    return Bootstrap.of_samples([samples[i] for i in members], SETTINGS, 0)


def test_block_ends_are_powers_of_two_and_the_number_of_images():
    assert block_ends(20) == [2, 4, 8, 16, 20]
    assert block_ends(8) == [2, 4, 8]
    assert block_ends(2) == [2]
    assert block_ends(1) == [1]


def test_nested_blocks_hold_every_training_sample_once_and_prompts_together():
    part = nested("depth")
    for blocks in part.blocks:
        assert [len(block) for block in blocks] == [2, 2, 4, 8, 4]
        order = np.concatenate(blocks)
        assert sorted(order) == list(range(20))
        assert (order[::2] // 2 == order[1::2] // 2).all()
    assert not np.array_equal(np.concatenate(part.blocks[0]), np.concatenate(part.blocks[1]))


def test_learning_record_equals_refits_to_the_first_images():
    part, data = nested("depth"), refit_data("depth")
    bootstrap = bootstrap_of(TEST)
    record = learning_record(part, TestScorer(data.labels, "depth", TEST), bootstrap, 2)
    assert record.images == [4, 8, 16, 20]
    truth = data.labels.maps["depth"][TEST]
    for row, n in enumerate(record.images):
        scores = np.empty((DRAWS, 12))
        for draw in range(DRAWS):
            first = np.concatenate(part.blocks[draw])[:n]
            fit, term, _ = probe_on_pixels(data, first, np.arange(20, 28))
            full = predict_slowly(data, fit, term, TEST).repeat(2, 1).repeat(2, 2)
            scores[draw] = [
                spearmanr(p.ravel(), t.ravel()).statistic for p, t in zip(full, truth, strict=True)
            ]
        np.testing.assert_allclose(record.draws[row], scores.mean(1), atol=1e-9)
        expected = bootstrap.interval(scores.mean(0))
        assert record.score[row].mean == pytest.approx(expected.mean)
        assert record.score[row].high == pytest.approx(expected.high)


def test_code_length_record_averages_draws_for_every_image():
    part = nested("foreground")
    bootstrap = bootstrap_of(np.arange(20))
    record = code_length_record(part, bootstrap, 1)
    totals = np.zeros((2, 20))
    counts = np.zeros(20)
    for draw in range(DRAWS):
        lengths = code_lengths(part.data, part.blocks[draw], part.sums[draw])
        for image in range(20):
            if np.isfinite(lengths[0, image]):
                totals[:, image] += lengths[:, image]
                counts[image] += 1
    assert counts.sum() == DRAWS * 16
    means = totals[:, counts > 0] / counts[counts > 0]
    assert record.position == pytest.approx(means[0].mean())
    assert record.probe == pytest.approx(means[1].mean())
    assert record.saved.mean == pytest.approx(record.position - record.probe)
    assert record.compression == pytest.approx(record.position / record.probe)
    assert code_length_record(nested("depth"), bootstrap, 1).compression is None


def test_records_are_none_without_enough_training_images():
    part = nested("depth")
    few = part.data.labels
    object.__setattr__(few, "train", np.arange(4))
    assert code_length_record(part, bootstrap_of(np.arange(4)), 1) is None
    object.__setattr__(few, "train", np.arange(0))
    scorer = TestScorer(few, "depth", TEST)
    empty = NestedBlocks(part.data, cell_samples(), 0)
    assert learning_record(empty, scorer, bootstrap_of(TEST), 1) is None
