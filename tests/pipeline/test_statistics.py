"""Statistics instead of activations: the same probes, whatever was cut off, in bounded space."""

from itertools import chain

import numpy as np
import pytest
from run_helpers import carry_out, small_study
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.activation_sinks import Activations
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.plan import plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.statistics import (
    Accumulator,
    load_statistics,
    mean_maps,
    packed,
    require_accumulated,
    run_accumulation_units,
    unpacked,
)
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.progress import Progress
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.batching import accumulation_units
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.samples import make_samples

HELD = 8


def study_of(tiny_model, store, samples=24, **changes):
    content = small_study("sums", tiny_model, samples).model_dump(mode="json", by_alias=True)
    content["capture"] |= {"keep": store, "accumulators": 2}
    heldout = None if samples is None else HELD
    content["probes"] = {"kinds": ["ridge"], "split": {"heldout": heldout}}
    content["controls"] = {"mlp": False}
    for key, value in changes.items():
        content[key] = {**content[key], **value}
    return parse_study(content)


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory):
    return carry_out(study_of(tiny_model, "both"), str(tmp_path_factory.mktemp("both")))


@pytest.fixture(scope="module")
def summed(tiny_model, tmp_path_factory):
    return carry_out(study_of(tiny_model, "statistics"), str(tmp_path_factory.mktemp("sums")))


def test_ridge_from_sums_equals_the_probes_fitted_to_what_is_stored(both):
    penalties = both.study.probes.penalties
    for layer in both.probe_inputs:
        stored = both.open(f"probes/{layer}").sel(kind="ridge")
        for step in (1, 2, 3):
            path = RidgePath.from_statistics(load_statistics(both, "trained", step, layer))
            for column, prop in enumerate(both.study.labels.maps):
                here = stored.sel(step=step, property=prop)
                assert float(here.penalty) in penalties
                weight, bias = path.solve(float(here.penalty))
                scale = np.abs(here.weight.values).max()
                assert np.abs(weight[:, column] - here.weight.values).max() < 1e-6 * scale
                assert bias[column] == pytest.approx(float(here.bias), rel=1e-6, abs=1e-9)


def test_sums_equal_scikit_learn_on_the_stored_activations(both):
    layer, penalty = both.layers[0], 1e-3
    labels = label_set(both)
    x = both.read(f"activations/{layer}", "activation", step=1)[labels.train].astype(float)
    y = block_means(labels.maps["depth"][labels.train], x.shape[1:3]).ravel()
    rows = x.reshape(-1, x.shape[-1])
    model = Ridge(alpha=penalty * rows.var(0).mean() * len(rows)).fit(rows, y)
    column = list(labels.maps).index("depth")
    weight, bias = RidgePath.from_statistics(load_statistics(both, "trained", 2, layer)).solve(
        penalty
    )
    np.testing.assert_allclose(weight[:, column], model.coef_, rtol=1e-5, atol=1e-7)
    assert bias[column] == pytest.approx(model.intercept_, rel=1e-5)
    for prop, mean in mean_maps(both).items():
        np.testing.assert_allclose(mean, labels.maps[prop][labels.train].mean(0), atol=1e-6)


def test_without_stored_activations_the_probes_are_the_same(tiny_model, tmp_path):
    """The same batches in both runs: held-out samples come first in the file."""
    rows = [f"a {i} on a table,{i},{'test' if i % 2 else 'validation'}" for i in range(HELD)]
    rows += [f"a {i} on a table,{i},train" for i in range(HELD, 24)]
    file = tmp_path / "prompts.csv"
    file.write_text("\n".join(["prompt,seed,split", *rows]))
    stored, summed = (
        carry_out(
            study_of(tiny_model, store, None, prompts={"files": str(file)}), str(tmp_path / store)
        )
        for store in ("activations", "statistics")
    )
    for layer in stored.probe_inputs:
        for name in ("weight", "bias", "penalty"):
            a, b = (run.open(f"probes/{layer}")[name].values for run in (stored, summed))
            assert np.abs(a - b).max() < 1e-6 * np.abs(a).max()
    for prop in stored.study.labels.maps:
        a, b = (run.read(f"scores/{prop}", "score") for run in (stored, summed))
        for variant in (0, 2):  # shuffled labels are dealt within batches, not over all samples
            np.testing.assert_allclose(a[variant], b[variant], atol=1e-6)


def test_only_held_out_samples_are_stored_and_they_come_first(summed):
    samples = summed.samples
    assert len(samples) == 24
    assert summed.n_stored == HELD
    assert all(s.split != "train" for s in samples[:HELD])
    assert all(s.split == "train" for s in samples[HELD:])
    for group in ("images", "labels", "labels_clean", f"activations/{summed.layers[0]}"):
        assert summed.open(group).sizes["sample"] == HELD
    training = list(
        chain.from_iterable(
            chain.from_iterable(chain.from_iterable(run_accumulation_units(summed)))
        )
    )
    assert training == list(range(HELD, 24))
    counts = summed.open("statistics/labels")["count"].values
    assert sum(counts[p, u % 2] for p, u in enumerate(summed.progress.counts("accumulated"))) == 16


def test_a_run_of_sums_has_a_report_and_no_damage(summed):
    report = build_report(summed, {})
    assert report.samples["train"] == 16
    assert report.properties["foreground"].controls.shuffled_labels is not None
    assert list(find_corrupt_chunks(summed)) == []


def test_size_does_not_grow_with_training_samples(tiny_model):
    """Every array is as large for 24 samples as for 4,096, but for the table of samples."""
    few, many = (
        plan_study(study_of(tiny_model, "statistics", n, sampling={"batch": 2})) for n in (24, 4096)
    )
    assert few.bytes_of["statistics"] == many.bytes_of["statistics"]
    assert few.n_stored <= many.n_stored <= 2 * few.n_stored  # prompts are held out whole
    assert few.memory == many.memory


def test_a_plan_needs_no_weights_to_know_what_sums_take():
    """Stable Diffusion 1.4 by its configs: 240 cells of 320 to 1,280 channels."""
    study = load_study("paper", ["prompts.files=null", "prompts.set=objects", "prompts.samples=900",
                                 "capture.keep=statistics", "capture.accumulators=3",
                                 "probes.kinds=[ridge]", "probes.split.heldout=120",
                                 "controls.permuted_weights=false",
                                 "controls.latents=false"])  # fmt: skip
    plan = plan_study(study)
    widths = [c + 1 + 6 for c, layers in ((320, 5), (640, 5), (1280, 6)) for _ in range(layers)]
    cells = sum(w * (w + 1) // 2 for w in widths) * 8 * 15
    assert plan.bytes_of["statistics"] == 3 * 2 * cells
    assert plan.memory["statistics"] == cells
    assert 120 <= plan.n_stored < 240
    assert plan.bytes_of["activations"] == plan.n_stored * 15 * 11_550_720 * 2


def test_a_unit_that_is_cut_off_or_comes_again_is_counted_once(
    tiny_model, tmp_path, summed, monkeypatch
):
    monkeypatch.setattr("ldmprobe_core.study.batching._BATCHES_A_UNIT", 1)
    run = prepare_run(study_of(tiny_model, "statistics"), str(tmp_path))
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
    with pytest.raises(RuntimeError, match="has 1 of 2 units"):
        require_accumulated(run)
    assert accumulate_unit(run.url, 0, 1)["samples"] == len(second[0])
    assert accumulate_unit(run.url, 0, 1)["samples"] == 0  # again
    assert accumulate_unit(run.url, 0, 0)["samples"] == 0
    with pytest.raises(RuntimeError, match="submit its units in order"):
        accumulate_unit(run.url, 1, 1)
    for number in range(len(run_accumulation_units(run)[1])):
        accumulate_unit(run.url, 1, number)
    require_accumulated(run)
    for layer in run.probe_inputs:  # one unit a batch or one unit a part: the same sums
        a, b = (load_statistics(r, "trained", 2, layer).gram for r in (run, summed))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


def test_damaged_sums_are_found_and_their_part_is_done_again(tiny_model, tmp_path):
    run = carry_out(study_of(tiny_model, "statistics"), str(tmp_path))
    array = f"statistics/trained/{run.layers[0]}/gram"
    counting = run.progress.count("accumulated", 1) % 2
    chunk = tmp_path / run.url.rpartition("/")[2] / array / "c" / "1" / str(counting) / "2" / "0"
    content = bytearray(chunk.read_bytes())
    content[11] ^= 1
    chunk.write_bytes(bytes(content))
    before = moments_of_untouched(run)
    (found,) = find_corrupt_chunks(run)
    assert found.key.startswith(array)
    assert clear_progress(run, [found]) == []
    assert run.progress.counts("accumulated").tolist() == [run.progress.count("accumulated", 0), 0]
    for number in range(len(run_accumulation_units(run)[1])):
        accumulate_unit(run.url, 1, number)
    assert list(find_corrupt_chunks(run)) == []
    np.testing.assert_array_equal(moments_of_untouched(run), before)


def moments_of_untouched(run):
    return load_statistics(run, "trained", 1, run.layers[1]).gram


def test_what_is_not_finite_takes_no_part_and_is_counted(both):
    """By hand: a sample that overflows at one step is left out of that cell, not of the others."""
    study = both.study
    rng = np.random.default_rng(0)
    layer = both.layers[0]
    values = rng.normal(size=(3, 2, 4, 4, 5)).astype(np.float16)
    values[1, 0, 2, 2, 3] = np.inf
    bad = (~np.isfinite(values)).sum((2, 3, 4)).astype(np.int32)
    labels = {p: rng.normal(size=(3, 8, 8)) for p in study.labels.maps}
    labels["foreground"] = labels["foreground"] > 0
    entries = len(packed(np.zeros((9, 9))))
    tally = Accumulator(
        {("trained", layer): np.zeros((2, entries))},
        {("trained", layer): np.zeros(2, np.int64)},
        {p: np.zeros((8, 8)) for p in labels},
        0,
    )
    tally.add({"trained": Activations({layer: values}, {layer: bad})}, labels, study)
    assert tally.nonfinite["trained", layer].tolist() == [1, 0]
    for step, members in ((0, [0, 2]), (1, [0, 1, 2])):
        x = values[members, step].reshape(-1, 5).astype(float)
        y = np.stack([block_means(labels[p], (4, 4))[members].ravel() for p in labels], 1)
        rows = np.column_stack([x, np.ones(len(x)), y])
        found = unpacked(tally.grams["trained", layer][step])
        np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-12, atol=1e-12)
        assert SufficientStatistics(found, 5).n == 16 * len(members)
    assert tally.count == 3


@pytest.mark.parametrize(("count", "first"), [(21, 8), (22, 8), (24, 0), (9, 8), (10, 8), (8, 0)])
def test_every_training_sample_is_in_one_batch_and_none_is_alone(tiny_model, count, first):
    study = study_of(tiny_model, "statistics")  # batches of 4
    parts = accumulation_units(study, first, count)
    batches = list(chain.from_iterable(chain.from_iterable(parts)))
    assert list(chain.from_iterable(batches)) == list(range(first, count))
    assert all(1 < len(batch) <= 5 for batch in batches) or count - first == 1
    assert len(parts) == min(2, len(batches))
    assert all(part for part in parts)


def test_held_out_prompts_hold_about_the_samples_that_were_asked_for(tiny_model):
    for samples, heldout in ((24, 8), (300, 8), (1000, 40)):
        study = study_of(tiny_model, "activations", samples, probes={"split": {"heldout": heldout}})
        splits = [s.split for s in make_samples(study)]
        assert heldout <= len(splits) - splits.count("train") <= 2 * heldout
        assert {"validation", "test"} <= set(splits)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"probes": {"kinds": ["ridge", "logistic"]}},
            "cannot fit logistic probes: set probes",
        ),
        ({"probes": {"kinds": ["adam"]}}, "cannot fit adam probes"),
        (
            {"controls": {"mlp": True}},
            "set controls.mlp to false, or capture.keep",
        ),
        ({"sampling": {"batch": 1}}, "sampling.batch is 1.*make it at least 2"),
        ({"capture": {"keep": "sums"}}, "capture.keep"),
        ({"capture": {"accumulators": 0}}, "capture.accumulators"),
    ],
)
def test_what_sums_cannot_do_is_said_at_once(tiny_model, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        study_of(tiny_model, "statistics", **changes)


def test_a_unit_that_others_went_past_meanwhile_leaves_their_sums_alone(
    tiny_model, tmp_path, monkeypatch
):
    """A worker that was taken for dead comes back when its part is further on."""
    monkeypatch.setattr("ldmprobe_core.study.batching._BATCHES_A_UNIT", 1)
    run = prepare_run(study_of(tiny_model, "statistics"), str(tmp_path))
    real_read = Accumulator.read

    def slow(run, part, done):
        found = real_read(run, part, done)
        if done == 0:
            monkeypatch.setattr(Accumulator, "read", real_read)
            for number in range(2):
                accumulate_unit(run.url, part, number)
        return found

    monkeypatch.setattr(Accumulator, "read", slow)
    with pytest.raises(RuntimeError, match="accumulator 0 advanced from 0 units to 2"):
        accumulate_unit(run.url, 0, 0)
    assert run.progress.count("accumulated", 0) == 2
    assert Accumulator.read(run, 0, 2).count == sum(
        len(unit[0]) for unit in run_accumulation_units(run)[0]
    )


def test_files_that_name_splits_and_a_number_held_out_are_one_too_many(tiny_model, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,seed,split\na,1,train\nb,2,validation\nc,3,test\n")
    study = study_of(tiny_model, "activations", None, prompts={"files": str(file)})
    content = study.model_dump(mode="json", by_alias=True)
    content["probes"]["split"]["heldout"] = 2
    with pytest.raises(
        UserError, match=r"probes.split.heldout is 2, and prompts.files name splits"
    ):
        make_samples(parse_study(content))


def test_a_held_out_part_that_leaves_nothing_to_train_on_is_refused(tiny_model):
    study = study_of(tiny_model, "activations", probes={"split": {"heldout": 24}})
    with pytest.raises(UserError, match=r"probes.split.heldout is 24.*lower it"):
        make_samples(study)
