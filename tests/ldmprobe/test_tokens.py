"""Streams of tokens: every token once, order, workers, memory, and refused arguments."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from run_helpers import HELD_OUT, small_study, statistics_study
from torch.utils.data import DataLoader

import ldmprobe as lp
from ldmprobe.tokens import cut_batches, shuffle_in_buffer
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError


def numbered(study, store):
    """A run whose tokens are numbered: n is stored as (n // 1000, n % 1000) in two channels.

    One sample, of the training samples if they are stored, has a value that is not finite at the
    second step; its numbers there are given as -1.
    """
    run = lp.open_run(prepare_run(study, str(store)).url)
    layer = run.layers[0]
    shape = run.activations(layer).shape
    numbers = np.arange(np.prod(shape[:4])).reshape(shape[:4])
    values = np.zeros(shape, np.float16)
    values[..., 0], values[..., 1] = numbers // 1000, numbers % 1000
    nonfinite = np.zeros(shape[:2], np.int32)
    broken = min((i for i in of_split(run, "train") if i < shape[0]), default=0)
    nonfinite[broken, 1] = 1
    numbers[broken, 1] = -1
    arrays = {"activation": values, "nonfinite": nonfinite}
    run.write(f"activations/{layer}", arrays, sample=slice(0, shape[0]))
    for index in range(len(run.progress.completed("generated"))):
        run.progress.mark_done("generated", index)
    return run, layer, numbers


@pytest.fixture(scope="module")
def stored(tiny_model, tmp_path_factory):
    return numbered(small_study("tokens", tiny_model, 12), tmp_path_factory.mktemp("runs"))


def of_split(run, split):
    return [sample.index for sample in run.samples if sample.split == split]


def ids(batches):
    """Numbers of the tokens, in the order of the batches."""
    rows = np.concatenate([batch.numpy() for batch in batches])
    return (rows[:, 0] * 1000 + rows[:, 1]).astype(int).tolist()


def expected(run, numbers, split="train", rows=slice(None)):
    chosen = numbers[of_split(run, split)][:, rows]
    return sorted(chosen[chosen >= 0].tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_gives_every_token_once(stored, workers):
    run, layer, numbers = stored
    stream = run.tokens(layer, batch=50, buffer=120)
    batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
    assert sorted(ids(batches)) == expected(run, numbers)
    assert stream.tokens == sum(map(len, batches))
    assert sum(len(batch) < 50 for batch in batches) <= max(workers, 1)


def test_the_order_is_a_function_of_seed_and_epoch(stored):
    run, layer, _ = stored
    stream = run.tokens(layer, batch=50, buffer=120, seed=3)
    first, again = ids(stream), ids(stream)
    stream.set_epoch(1)
    second = ids(stream)
    assert first == again == ids(run.tokens(layer, batch=50, buffer=120, seed=3))
    assert first != second
    assert first != ids(run.tokens(layer, batch=50, buffer=120, seed=4))
    assert sorted(first) == sorted(second)
    # Ranks of the order correlate with the stored order by no more than chance: 5 / sqrt(n).
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 5 / np.sqrt(len(first))


def test_workers_that_persist_take_the_next_epochs_order(stored):
    run, layer, numbers = stored
    stream = run.tokens(layer, batch=50, buffer=120)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    first = ids(loader)
    stream.set_epoch(1)
    second = ids(loader)
    assert first != second
    assert sorted(first) == sorted(second) == expected(run, numbers)


def test_steps_and_split_choose_tokens(stored):
    run, layer, numbers = stored
    assert sorted(ids(run.tokens(layer, steps=3))) == expected(run, numbers, rows=[2])
    assert run.tokens(layer, steps=np.int64(3)).tokens == run.tokens(layer, steps=3).tokens
    chosen = run.tokens(layer, steps=[1, 2], split="test")
    assert sorted(ids(chosen)) == expected(run, numbers, "test", [0, 1])


def test_the_buffer_bounds_the_rows_in_memory():
    read = given = most = 0
    sizes = [7, 40, 40, 3, 40, 40, 25]

    def chunks():
        nonlocal read
        for size in sizes:
            yield np.arange(read, read + size)[:, None]
            read += size

    rows = []
    for batch in cut_batches(shuffle_in_buffer(chunks(), 60, 16, np.random.default_rng(0)), 16):
        most = max(most, read - given)
        given += len(batch)
        rows += batch[:, 0].tolist()
    assert sorted(rows) == list(range(sum(sizes)))
    assert most <= 60 + 40 + 16  # buffer, chunk and batch


@pytest.fixture
def copied(stored, tmp_path):
    """A copy of the stored run, which a test may damage."""
    run, layer, _ = stored
    return lp.open_run(str(shutil.copytree(run.url, tmp_path / "copied"))), layer


def test_a_lost_chunk_of_tokens_raises(copied):
    run, layer = copied
    chunk = of_split(run, "train")[0] // 4
    (Path(run.url) / f"activations/{layer}/activation/c/{chunk}/0/0/0/0").unlink()
    with pytest.raises(CorruptChunkError, match="is missing"):
        list(run.tokens(layer))


def test_tokens_that_are_not_generated_are_refused(copied):
    run, layer = copied
    run.progress.clear("generated", of_split(run, "train")[0] // 4)
    with pytest.raises(lp.UserError, match="run: activations of these samples are not generated"):
        run.tokens(layer)


def test_training_tokens_that_are_only_summed_are_refused(tiny_model, tmp_path):
    run, layer, numbers = numbered(statistics_study(tiny_model, "statistics"), tmp_path)
    with pytest.raises(lp.UserError, match="split: the run stores no activations of these samples"):
        run.tokens(layer)
    tokens = [run.tokens(layer, split=split).tokens for split in ("validation", "test")]
    assert sum(tokens) == (HELD_OUT * 3 - 1) * numbers[0, 0].size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "latents"}, "layer: 'latents' is not in the run"),
        ({"steps": 4}, r"steps: not a list of distinct steps of the run \(\[4\]\)"),
        ({"steps": [1, 1]}, "steps: not a list of distinct steps"),
        ({"steps": []}, "steps: not a list of distinct steps"),
        ({"steps": 1.5}, "steps: not a list of distinct steps"),
        ({"steps": "12"}, "steps: not a list of distinct steps"),
        ({"batch": 2.5}, "batch: 2.5 is not a whole number"),
        ({"seed": None}, "seed: None is not a whole number"),
        ({"split": "training"}, r"split: there is no such split \(training\)"),
        ({"batch": 0}, "batch: it has no tokens"),
        ({"batch": 64, "buffer": 63}, "buffer: it is smaller than a batch of 64 tokens"),
        ({"seed": -1}, "seed: it is negative"),
    ],
)
def test_arguments_of_tokens_without_sense_are_refused(stored, arguments, words):
    run, layer, _ = stored
    with pytest.raises(lp.UserError, match=words):
        run.tokens(**{"layer": layer, **arguments})
