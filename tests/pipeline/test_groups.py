"""Runs in which step images, and the permuted denoiser, are of some samples and steps only."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from run_helpers import assert_same, carry_out, small_study, statistics_study
from scipy import stats
from tiers import rest_slow

from ldmprobe_core.analysis.controls import rivals
from ldmprobe_core.analysis.controls.rivals import rival_scores
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.summarize import summarise
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.accumulate import accumulate_unit
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.statistics import load_statistics
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.batching import permuted_samples, step_image_samples
from ldmprobe_core.study.loading import parse_study

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
SOME = {"trajectory": {"samples": 8, "training": 6, "steps": [1, 3]},
        "controls": {"permuted_weights": {"samples": 22}, "permutations": 2}}  # fmt: skip


def some_of(model, **changes):
    content = small_study("some", model, 40).model_dump(mode="json", by_alias=True)
    return parse_study({**content, **SOME, **changes})


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    return carry_out(some_of(tiny_model), str(tmp_path_factory.mktemp("some")))


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """The same samples, all with step images at all steps and with the permuted denoiser."""
    study = some_of(
        tiny_model,
        trajectory={"samples": "all", "training": 40},
        controls={"permuted_weights": {"samples": 40}, "permutations": 2},
    )
    return carry_out(study, str(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def copy(run, tmp_path):
    target = tmp_path / Path(run.url).name
    shutil.copytree(run.url, target)
    return Run(str(target))


def test_groups_hold_the_values_of_their_samples_and_steps_alone(run, whole):
    index = step_image_samples(run.study, run.samples)
    twin = permuted_samples(run.study, run.samples)
    assert 0 < len(index) < 40 > len(twin) >= 22
    for group in ("step_images", "labels_trajectory", "labels_clean", "activations/clean_pixels"):
        part, every = run.open(group), whole.open(group)
        assert part.sample.values.tolist() == index.tolist()
        assert part.step.values.tolist() == [1, 3]
        assert every.sample.values.tolist() == list(range(40))
        for name in part.data_vars:
            expected = every[name].sel(sample=index, step=[1, 3]).values
            # A level of 255, since other images are decoded in the same call.
            tolerance = 1 if group == "step_images" else 0.02
            error = np.abs(part[name].values.astype(float) - expected)
            assert error.max() <= tolerance, (group, name)
    part, every = (r.open(f"activations_permuted/{LAYER}") for r in (run, whole))
    assert part.sample.values.tolist() == twin.tolist()
    for name in part.data_vars:
        assert (part[name].values == every[name].sel(sample=twin).values).all()
    last = run.read("step_images", "trajectory", step=1)
    assert (last == run.read("images", "image", sample=index)).all()


def test_probe_cell_fits_the_permuted_network_to_its_samples(run):
    twin, labels = permuted_samples(run.study, run.samples), label_set(run)
    rows = run.read(f"activations_permuted/{LAYER}", "activation", step=1)

    def among(members):
        return np.flatnonzero(np.isin(twin, members))

    alone = LabelSet(
        {prop: maps[twin] for prop, maps in labels.maps.items()}, labels.means,
        among(labels.train), among(labels.validation), among(labels.heldout),
    )  # fmt: skip
    columns = run.study.label_columns("permuted")
    expected = probe_activations(rows, alone, run.study, columns)["true"].scores["depth"][0]
    stored = run.open("scores/depth")
    scores = stored.score.sel(condition="permuted_weights", kind="ridge", layer=LAYER, step=2)
    assert (stored.has_permuted.values == np.isin(labels.heldout, twin)).all()
    assert np.isnan(scores.values[:, ~stored.has_permuted.values]).all()
    np.testing.assert_array_equal(scores.values[:, stored.has_permuted.values], expected)


def test_probe_cell_gives_clean_pixels_scores_at_decoded_steps(run):
    stored = run.open("scores/depth")
    scores = stored.score.sel(condition="probe", kind="ridge", metric="spearman")
    defined = np.isfinite(scores.sel(layer="clean_pixels").values)
    assert (defined == np.array([True, False, True])[:, None] & stored.has_step_images.values).all()


def test_clean_pixels_are_block_means_of_the_predicted_clean_images(run):
    """They differ from the block means of the step images, which the denoiser has not cleaned."""
    images = {name: run.read("step_images", name) / 255 for name in ("clean", "trajectory")}
    tokens = run.read("activations/clean_pixels", "activation").astype(float)
    down, across = (
        images["clean"].shape[2] // tokens.shape[2],
        images["clean"].shape[3] // tokens.shape[3],
    )
    errors = dict.fromkeys(images, 0.0)
    for index in np.ndindex(tokens.shape[:4]):
        sample, step, y, x = index
        for name, image in images.items():
            block = image[sample, step, y * down : (y + 1) * down, x * across : (x + 1) * across]
            errors[name] = max(errors[name], np.abs(tokens[index] - block.mean((0, 1))).max())
    assert errors["clean"] < 1e-3  # float16
    assert errors["trajectory"] > 0.01


def test_rival_scores_are_undefined_without_step_images(run, whole):
    labels = label_set(run)
    test = np.array([i for i in labels.heldout if run.samples[i].split == "test"])
    has = np.isin(test, step_image_samples(run.study, run.samples))
    assert 0 < has.sum() < len(test)
    for source in ("trajectory", "clean"):
        scores, every = (
            rival_scores(r, "depth", source, label_set(r), test, 3) for r in (run, whole)
        )
        expected = np.where(np.array([True, False, True])[:, None] & has, every[source], np.nan)
        np.testing.assert_allclose(scores[source], expected, atol=0.03)


@pytest.mark.parametrize("source", ["trajectory", "clean"])
def test_rival_scores_are_those_of_every_map_one_by_one(run, source, monkeypatch):
    monkeypatch.setattr(rivals, "PART_BYTES", 1)  # The maps of one sample are read at once.
    labels, index = label_set(run), step_image_samples(run.study, run.samples)
    maps = run.open(f"labels_{source}").depth.values.astype(float)
    truth, mean = labels.maps["depth"].astype(float), labels.means["depth"]
    test = np.array([i for i in labels.heldout if run.samples[i].split == "test"])
    train = [i for i in labels.train if i in index]
    found = rival_scores(run, "depth", source, labels, test, 3)

    def blocks(one):
        return np.array(
            [part.mean() for rows in np.split(one, 16) for part in np.split(rows, 16, 1)]
        )

    for row, step in enumerate([1, 3]):
        of = {i: maps[list(index).index(i), row] for i in index}
        x = [[*blocks(of[i]), *blocks(mean)] for i in train]
        x = np.array(x).reshape(len(train), 2, -1).swapaxes(1, 2).reshape(-1, 2)
        y = np.concatenate([blocks(truth[i]) for i in train])
        a, b, c = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
        for column, i in enumerate(test):
            expected = [np.nan, np.nan]
            if i in index:
                seen = [of[i], a * of[i] + b * mean + c]
                expected = [stats.spearmanr(s.ravel(), truth[i].ravel()).statistic for s in seen]
            names = source, f"{source}_recalibrated"
            both = [found[name][step - 1, column] for name in names]
            np.testing.assert_allclose(both, expected, atol=1e-9)
    assert all(np.isnan(scores[1]).all() for scores in found.values())


def test_a_step_image_without_a_map_has_no_rival_score(copy):
    """The scores of the other images stay as they were."""
    labels, index = label_set(copy), step_image_samples(copy.study, copy.samples)
    test = np.array([i for i in index if copy.samples[i].split == "test"])
    place = list(index).index(test[0])
    before = rival_scores(copy, "foreground", "clean", labels, test, 3)
    data = copy.open("labels_clean").load()
    values = data.foreground.values.copy()
    values[place, 1] = np.nan
    chunk = slice(place, place + 1)
    kept = {str(n): a.values[chunk] for n, a in data.data_vars.items()}
    copy.write("labels_clean", kept | {"foreground": values[chunk]}, sample=chunk)
    after = rival_scores(copy, "foreground", "clean", labels, test, 3)
    for name, scores in after.items():
        assert np.isnan(scores[2, 0])
        before[name][2, 0] = np.nan
        np.testing.assert_array_equal(scores, before[name])


def test_summary_compares_probe_and_control_on_the_same_samples(run):
    analysis = summarise(run, {})
    index = permuted_samples(run.study, run.samples)
    split = np.array([sample.split for sample in run.samples])
    record = analysis.summary.properties["depth"]
    control = record.controls.permuted_weights
    assert control.samples == {s: int((split[index] == s).sum()) for s in set(split)}
    assert record.controls.latents.samples is None
    # The difference again: the probe of the best cell, fitted to the control's samples.
    labels, best = label_set(run), record.best
    rows = run.read(f"activations/{best.layer}", "activation", step=best.step - 1)
    train = labels.train[np.isin(labels.train, index)]
    few = LabelSet(
        labels.maps, labels.means, train,
        labels.validation[np.isin(labels.validation, index)], labels.heldout,
    )  # fmt: skip
    refit = probe_activations(rows, few, run.study)["true"].scores["depth"]
    own, stored = control.own_best, run.open("scores/depth").score
    theirs = stored.sel(
        condition="permuted_weights", kind=own.kind, metric="spearman", layer=own.layer,
        step=own.step,
    ).values  # fmt: skip
    both = (split[labels.heldout] == "test") & np.isin(labels.heldout, index)
    difference = refit[run.study.kinds.index(best.kind), 0, both] - theirs[both]
    assert control.difference.mean == pytest.approx(difference.mean(), abs=1e-6)
    leads = record.leads
    assert leads.samples == 8
    assert record.emergence.paired is not None
    assert analysis.summary.classes.samples == len(step_image_samples(run.study, run.samples))
    assert [share is None for share in analysis.summary.classes.agreement["clean"]] == [
        False, True, False,
    ]  # fmt: skip


def test_build_report_draws_samples_with_step_images(copy):
    with_images = set(step_image_samples(copy.study, copy.samples).tolist())
    without = [i for i, s in enumerate(copy.samples) if s.split == "test" and i not in with_images]
    with pytest.raises(UserError, match=rf"sample {without[0]} has no step images.*Fix: choose"):
        build_report(copy, {}, (without[0],))
    build_report(copy, {})
    drawn = [int(p.stem[7:]) for p in (Path(copy.url) / "report").glob("sample-*.svg")]
    assert len(drawn) == 4
    assert set(drawn) <= with_images


def damaged_chunks(run):
    """A chunk of each group of some samples, with the batch that writes it."""
    index = step_image_samples(run.study, run.samples)
    twin = permuted_samples(run.study, run.samples)
    last = len(index) - 1
    return {
        f"step_images/clean/c/{last}/0/0/0/0": ("generated", int(index[last]) // 4),
        "activations/clean_pixels/activation/c/2/0/0/0/0": ("generated", int(index[2]) // 4),
        f"activations_permuted/{LAYER}/activation/c/3/1/0/0/0": ("generated", int(twin[12]) // 4),
        f"activations_permuted/{LAYER}/nonfinite/c/5/0": ("generated", int(twin[20]) // 4),
        "labels_trajectory/depth/c/4/0/0/0": ("labeled", int(index[4]) // 4),
        f"labels_clean/class_score/c/{last}/0/0": ("labeled", int(index[last]) // 4),
    }


@pytest.mark.parametrize("number", range(6))
def test_a_damaged_chunk_is_found_and_its_batch_repeated(run, copy, number):
    key, (kind, batch) = list(damaged_chunks(run).items())[number]
    path = Path(copy.url) / key
    path.unlink() if number % 2 else path.write_bytes(path.read_bytes()[:-7])
    damage = list(find_corrupt_chunks(copy))
    assert [chunk.key for chunk in damage] == [key]
    assert clear_progress(copy, damage).beyond_repair == []
    assert np.flatnonzero(~copy.progress.completed(kind)).tolist() == [batch]
    if number in (0, 2, 4):
        carry_out(copy.study, str(Path(copy.url).parent))
        assert_same(run, copy)


def test_a_damaged_list_of_samples_is_beyond_repair(copy):
    path = Path(copy.url) / "step_images/sample/c/0"
    path.write_bytes(path.read_bytes()[:-3])
    damage = list(find_corrupt_chunks(copy))
    assert {chunk.key for chunk in damage} == {"step_images/sample/c/0"}
    assert clear_progress(copy, damage).beyond_repair == damage


def test_plan_study_counts_the_samples_of_each_group(tiny_model, run):
    plan = plan_study(some_of(tiny_model))
    assert plan.stored.permuted == len(permuted_samples(run.study, run.samples))
    assert plan.stored.step_images == len(step_image_samples(run.study, run.samples))
    assert plan.stored.steps == 2
    sizes = plan.shapes[LAYER]
    everything = sum(plan.shapes[n].y * plan.shapes[n].x * plan.shapes[n].channels
                     for n in plan.layers)  # fmt: skip
    assert plan.bytes_of["activations_permuted"] == plan.stored.permuted * 3 * 2 * everything
    assert sizes.channels > 0
    with pytest.raises(UserError, match=r"trajectory.steps: .* 3 steps. Fix: "):
        plan_study(some_of(tiny_model, trajectory={"steps": [1, 2]}))


@pytest.mark.parametrize(
    ("keep", "name"),
    rest_slow(
        [
            ("statistics", "permuted_weights"),
            ("both", "permuted_weights"),
            ("statistics", "random_weights"),
        ],
        (0,),
    ),
)
def test_sums_of_the_untrained_network_are_of_its_training_samples(
    tiny_model, tmp_path, keep, name
):
    controls = {"mlp": False, "permuted_weights": False, name: {"samples": 12}}
    study = statistics_study(tiny_model, keep, 27, controls=controls)
    run = carry_out(study, str(tmp_path))
    index, split = permuted_samples(study, run.samples), [s.split for s in run.samples]
    training = sum(split[i] == "train" for i in index)
    assert 0 < training < split.count("train")
    for network, count in (("trained", split.count("train")), ("permuted", training)):
        sums = load_statistics(run, network, 2, LAYER)
        tokens = run.open(f"activations/{LAYER}").sizes["y"] ** 2
        assert sums.gram[sums.channels, sums.channels] == count * tokens
    assert accumulate_unit(run.url, 0, 0)["samples"] == 0
    assert list(find_corrupt_chunks(run)) == []
    summary = summarise(run, {}).summary
    controls = summary.properties["depth"].controls.by_name()
    assert controls[name].samples["train"] == training
    assert len({"permuted_weights", "random_weights"} & set(controls)) == 1
