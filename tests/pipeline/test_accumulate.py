"""Accumulating units: interrupted, repeated, overtaken, damaged."""

import itertools
import shutil

import numpy as np
import pytest
from run_helpers import carry_out, statistics_study

from ldmprobe_core.errors import RunError
from ldmprobe_core.labelers.registry import register_labeler
from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.statistics import (
    Accumulator,
    load_statistics,
    mean_maps,
    require_accumulated,
    run_accumulation_units,
)
from ldmprobe_core.storage.progress import Progress
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.loading import parse_study


def test_accumulate_unit_counts_an_interrupted_or_repeated_unit_once(
    tiny_model, tmp_path, summed, monkeypatch
):
    monkeypatch.setattr("ldmprobe_core.study.batching.BATCHES_PER_UNIT", 1)
    run = prepare_run(statistics_study(tiny_model, "statistics"), str(tmp_path))
    first, second = run_accumulation_units(run)[0]
    assert accumulate_unit(run.url, 0, 0)["samples"] == len(first[0])
    real = Progress.set_count

    def dies(self, kind, *index, count):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "set_count", dies)
    with pytest.raises(KeyboardInterrupt):
        accumulate_unit(run.url, 0, 1)  # its sums are written, its mark is not
    monkeypatch.setattr(Progress, "set_count", real)
    assert Accumulator.read(run, 0, run.progress.count("accumulated", 0)).count == len(first[0])
    with pytest.raises(
        RunError,
        match=rf"has completed 1 of its 2 units\. Fix: run `ldmprobe verify {run.url} --redo`",
    ):
        require_accumulated(run)
    assert accumulate_unit(run.url, 0, 1)["samples"] == len(second[0])
    assert accumulate_unit(run.url, 0, 1)["samples"] == 0  # again
    assert accumulate_unit(run.url, 0, 0)["samples"] == 0
    with pytest.raises(RuntimeError, match="submit the accumulator's units in order"):
        accumulate_unit(run.url, 1, 1)
    for number in range(len(run_accumulation_units(run)[1])):
        accumulate_unit(run.url, 1, number)
    require_accumulated(run)
    for layer in run.probe_inputs:  # one unit a batch or one unit a part: the same sums
        a, b = (load_statistics(r, "trained", 2, layer).gram for r in (run, summed))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


def test_accumulate_unit_refuses_a_mask_that_is_no_share(tiny_model, tmp_path):
    """The labels of these training samples are never stored, where others would find them."""
    calls = []

    def levels(images):
        calls.append(len(images))
        return images[..., 0] / (255 if calls == [1] else 1)  # shares in the trial alone

    register_labeler("foreground", "levels")(levels)
    content = statistics_study(tiny_model, "statistics").model_dump(mode="json", by_alias=True)
    content["labels"] |= {"foreground": "levels"}
    run = prepare_run(parse_study(content), str(tmp_path))
    with pytest.raises(RunError, match=r"labels\.foreground: .*mask values range from .*Fix"):
        accumulate_unit(run.url, 0, 0)
    assert run.progress.count("accumulated", 0) == 0


def test_accumulate_unit_that_was_overtaken_leaves_the_sums_unchanged(
    tiny_model, tmp_path, monkeypatch
):
    """A suspended worker resumes after another one advanced its accumulator."""
    monkeypatch.setattr("ldmprobe_core.study.batching.BATCHES_PER_UNIT", 1)
    run = prepare_run(statistics_study(tiny_model, "statistics"), str(tmp_path))
    real_read = Accumulator.read

    def slow(run, part, done):
        found = real_read(run, part, done)
        if done == 0:
            monkeypatch.setattr(Accumulator, "read", real_read)
            for number in range(2):
                accumulate_unit(run.url, part, number)
        return found

    monkeypatch.setattr(Accumulator, "read", slow)
    with pytest.raises(RuntimeError, match="advanced accumulator 0 from 0 units to 2"):
        accumulate_unit(run.url, 0, 0)
    assert run.progress.count("accumulated", 0) == 2
    assert Accumulator.read(run, 0, 2).count == sum(
        len(unit[0]) for unit in run_accumulation_units(run)[0]
    )


def test_damaged_statistics_are_found_and_their_part_is_accumulated_again(tiny_model, tmp_path):
    run = carry_out(statistics_study(tiny_model, "statistics"), str(tmp_path))
    array = f"statistics/trained/{run.layers[0]}/gram"
    counting = run.progress.count("accumulated", 1) % 2
    chunk = tmp_path / run.url.rpartition("/")[2] / array / "c" / "1" / str(counting) / "2" / "0"
    content = bytearray(chunk.read_bytes())
    content[11] ^= 1
    chunk.write_bytes(bytes(content))
    before = moments_of_untouched(run)
    (found,) = find_corrupt_chunks(run)
    assert found.key.startswith(array)
    assert clear_progress(run, [found]).beyond_repair == []
    assert run.progress.counts("accumulated").tolist() == [run.progress.count("accumulated", 0), 0]
    for number in range(len(run_accumulation_units(run)[1])):
        accumulate_unit(run.url, 1, number)
    assert list(find_corrupt_chunks(run)) == []
    np.testing.assert_array_equal(moments_of_untouched(run), before)


def test_a_mark_of_sums_lost_from_a_finished_run_is_missing(summed, tmp_path):
    run = Run(str(shutil.copytree(summed.url, tmp_path / summed.url.rpartition("/")[2])))
    run.location.write_text("summary.json", "{}")
    run.location.remove("progress/accumulated/c/1")
    (mark,) = find_corrupt_chunks(run)
    assert (mark.key, mark.reason) == ("progress/accumulated/c/1", "missing")
    assert clear_progress(run, [mark]).units == [("progress", "accumulated", (1,))]
    assert not run.location.has("summary.json")
    assert list(find_corrupt_chunks(run)) == []  # a run without summary may lack marks
    for number in range(len(run_accumulation_units(run)[1])):
        accumulate_unit(run.url, 1, number)
    assert (
        run.progress.counts("accumulated").tolist()
        == summed.progress.counts("accumulated").tolist()
    )
    assert list(find_corrupt_chunks(run)) == []


def test_sums_that_a_late_worker_overwrote_are_refused_and_accumulated_again(summed, tmp_path):
    """Their chunks are whole, so that only the recorded checksums tell."""
    run = Run(str(shutil.copytree(summed.url, tmp_path / summed.url.rpartition("/")[2])))
    done = run.progress.count("accumulated", 0)
    # The worker began when fewer units were complete, and was suspended while it wrote the buffer
    # that is the active one now.
    late = Accumulator.read(run, 0, done)
    for gram in late.grams.values():
        gram /= 2
    late.write(Run(run.url), 0, done)
    layer = run.layers[0]
    with pytest.raises(
        CorruptChunkError, match=rf"statistics/trained/{layer}/gram/c/0/1/0/0 is ch"
    ) as e:
        load_statistics(run, "trained", 1, layer)
    with pytest.raises(CorruptChunkError, match="is changed"):
        Accumulator.read(run, 0, done)
    # Untouched sums, and what a flow's repair does:
    assert mean_maps(run)["depth"].tobytes() == mean_maps(summed)["depth"].tobytes()
    assert clear_progress(run, find_corrupt_chunks(run, e.value.array)).beyond_repair == []
    for number in range(done):
        accumulate_unit(run.url, 0, number)
    for step, name in itertools.product((1, 3), run.probe_inputs):
        sums, before = (load_statistics(r, "trained", step, name) for r in (run, summed))
        np.testing.assert_array_equal(sums.gram, before.gram)


def moments_of_untouched(run):
    return load_statistics(run, "trained", 1, run.layers[1]).gram
