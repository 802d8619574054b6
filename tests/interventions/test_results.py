"""Summaries of interventions, against a loop over the images."""

import numpy as np
import pytest
import xarray as xr
from intervention_helpers import carry_out_intervention
from scipy.stats import pearsonr, rankdata, spearmanr

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.measures.summarize import summarise_intervention
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.results import main_results, read_intervention_summary
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import edit_batch, edit_units
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.cell import probe_activations
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.metrics import dice
from ldmprobe_core.study.conditions import LabelColumn


def partial_rank_correlation(a, b, other):
    """Correlation of the ranks of two maps, less what the ranks of a third one explain."""
    design = np.stack([np.ones(len(other)), rankdata(other)], axis=1)
    rests = [
        rankdata(one) - design @ np.linalg.lstsq(design, rankdata(one), rcond=None)[0]
        for one in (a, b)
    ]
    return pearsonr(*rests).statistic


@pytest.mark.parametrize("prop", ["foreground", "depth"])
def test_summarise_intervention_equals_a_loop_over_the_images(run, prop):
    spec = Intervention(
        prop=prop, samples=5, targets=(Target(dx=0.25), Target(dy=-0.125)), steps=3, layers=("*",)
    )
    summary = carry_out_intervention(run, spec)
    data = xr.open_zarr(run.url, group=f"interventions/{spec.name}", chunks=None)
    labelers = model_cache.get_labelers(run.study)
    index = [int(i) for i in data.sample.values]
    labels = run.read("labels", prop, sample=index)
    scores = {"unedited": []}
    data = data.isel(site=0, dose=0)
    for t in range(2):
        target_map = data.target_map.values[t]
        for condition, images in zip(data.condition.values, data.image.values[:, t], strict=True):
            label = labelers[prop](images)
            np.testing.assert_allclose(
                data.label.sel(condition=condition).values[t], label, rtol=1e-3, atol=1e-3
            )
            if prop == "foreground":
                scores.setdefault(str(condition), []).append(dice(label > 0.5, target_map > 0.5))
        if prop == "foreground":
            scores["unedited"].append(dice(labels > 0.5, target_map > 0.5))
    # A mask's background is what neither it nor its target covers; of other maps, every pixel.
    before = run.read("images", "image", sample=index).astype(float)
    mean_map = label_set(run).means[prop].ravel()
    for condition, effect in summary.effects.items():
        changes, agreement = [], []
        for t, i in np.ndindex(2, len(index)):
            here = data.isel(target=t, sample=i).sel(condition=condition)
            change = np.abs(here.image.values - before[i]).mean(-1) / 255
            covered = (labels[i] > 0.5) | (here.target_map.values > 0.5)
            changes.append(change[~covered].mean() if prop == "foreground" else change.mean())
            if prop == "depth":
                pair = here.label.values.ravel(), here.target_map.values.ravel()
                agreement.append((partial_rank_correlation(*pair, mean_map), spearmanr(*pair)[0]))
        assert effect.outside.mean == pytest.approx(np.mean(changes), abs=1e-6)
        if prop == "depth":
            partial, plain = np.mean(agreement, axis=0)
            assert effect.mean.mean == pytest.approx(partial, abs=1e-6)
            assert effect.measures["spearman"].mean == pytest.approx(plain, abs=1e-6)
    if prop == "foreground":
        np.testing.assert_allclose(summary.unedited.mean, np.mean(scores["unedited"]), atol=1e-6)
        for condition, effect in summary.effects.items():
            np.testing.assert_allclose(effect.mean.mean, np.mean(scores[condition]), atol=1e-6)
            gap = np.array(scores[condition]) - scores["unedited"]
            np.testing.assert_allclose(effect.less_unedited.mean, gap.mean(), atol=1e-6)
            assert effect.improved == pytest.approx((gap > 0).mean())
            if condition != "edited":
                less = np.array(scores["edited"]) - scores[condition]
                np.testing.assert_allclose(effect.edit_less_this.mean, less.mean(), atol=1e-6)
    top_class = run.read("labels", "class_score", sample=index).argmax(1)
    for condition, effect in summary.effects.items():
        images = data.image.sel(condition=condition).values
        kept = [labelers["class"](of_target).argmax(1) == top_class for of_target in images]
        assert effect.kept == pytest.approx(np.mean(kept))
    readings = data.reading.sel(condition="edited").values
    assert summary.sites[0].reading == pytest.approx(readings.mean())
    assert np.ptp(readings) > 0
    assert summary.pairs == 10
    assert set(summary.effects) == {"edited", "orthogonal", "coherent", "permuted", "own_label"}
    assert read_intervention_summary(run, spec.name) == summary
    # Repeating the calls generates nothing and gives the same summary.
    assert all(
        edit_batch(run.url, spec.name, *unit)["images"] == 0 for unit in edit_units(run, spec.name)
    )
    repeated = summarise_intervention(run, spec.name, summary.seconds + 9)
    assert repeated == summary == read_intervention_summary(run, spec.name)


def test_summarise_intervention_resamples_prompts_over_all_targets(run):
    """Two targets of a sample are not independent: the interval is over prompts."""
    spec = Intervention(samples=5, targets=(Target(dx=0.25), Target(dx=0.2501)), steps=1)
    summary = carry_out_intervention(run, spec)
    score = run.read(f"interventions/{spec.name}", "score", condition=0, measure=0, site=0, dose=0)
    samples = [run.samples[i] for i in plan_intervention(run, spec).samples]
    prompts = np.array([sample.prompt for sample in samples] * 2)
    categories = np.array([sample.category for sample in samples] * 2)
    bootstrap = Bootstrap(prompts, 200, 0.95, 0, categories)
    expected = bootstrap.interval(score.ravel().astype(float))
    assert summary.effects["edited"].mean.low == pytest.approx(expected.low)


def test_summarise_intervention_gives_what_is_decodable_at_each_site_of_a_map(run):
    """The mean of the test scores over the window's steps, read from the run's arrays.

    For latents, the scores are those of probes of single latents, which are fitted here.
    """
    spec = Intervention(samples=2, windows=2, controls=(), seed=9)
    summary = carry_out_intervention(run, spec)
    scores = xr.open_zarr(run.url, group="scores/foreground", chunks=None).score
    test = [i for i in scores.sample.values if run.samples[i].split == "test"]
    fitted = [
        probe_activations(
            run.read("activations/latents", "activation", step=step), label_set(run), run.study,
            (LabelColumn("true", "foreground"),),
        )["true"].scores["foreground"][run.study.kinds.index("logistic"), 0]
        for step in range(3)
    ]  # fmt: skip
    rows = np.isin(label_set(run).heldout, test)
    for site in summary.sites:
        if site.layers == ["latents"]:
            expected = np.mean(fitted[site.first - 1 : site.last], axis=0)[rows].mean()
            assert site.decodable.mean == pytest.approx(float(expected), abs=1e-6)
            continue
        cell = scores.sel(condition="probe", kind="logistic", metric="dice", sample=test)
        steps = cell.sel(layer=site.layers[0], step=slice(site.first, site.last))
        expected = np.nanmean(steps.mean("step", skipna=False))
        assert site.decodable.mean == pytest.approx(float(expected), abs=1e-6)


def test_summarise_intervention_counts_a_vanished_mask_as_not_half_way(run):
    """Four pairs: two that moved far, one whose mask vanished, and one without a way to go."""
    spec = Intervention(samples=4, steps=1, controls=(), seed=31)
    carry_out_intervention(run, spec)
    group = f"interventions/{spec.name}"
    names = [str(name) for name in run.open(group).measure.values]
    score, unedited = run.read(group, "score"), run.read(group, "unedited")
    nan, way, area = np.nan, names.index("way"), names.index("area")
    unedited[way, 0] = [0, 0, 0, nan]
    score[0, way, 0, 0, 0] = [0.9, 0.8, nan, nan]
    score[0, area, 0, 0, 0] = [1, 2, 0, nan]
    score[0, 0] = nan
    run.write(group, {"score": score, "unedited": unedited})
    effect = summarise_intervention(run, spec.name, 0.0).effects["edited"]
    assert effect.halfway == pytest.approx(2 / 3)
    assert effect.vanished == pytest.approx(1 / 3)
    assert effect.improved is None


def test_main_results_have_no_headline_of_several_sites_or_doses(run):
    one = carry_out_intervention(run, Intervention(samples=2, steps=1, controls=(), seed=32))
    record = main_results(one)
    assert (record.edited, record.used) == (one.effects["edited"].mean, one.sites[0].used)
    assert record.doses == record.map == []
    doses = carry_out_intervention(run, Intervention(samples=2, doses=(4.0, 1.0), controls=()))
    record = main_results(doses)
    assert (record.edited, record.used, record.map) == (None, None, [])
    assert [entry.dose for entry in record.doses] == [1.0, 4.0]
    assert [entry.used for entry in record.doses] == [site.used for site in doses.sites]
    with pytest.raises(UserError, match=r"effects: .* several sites or doses \(2\)"):
        _ = doses.effects
    windows = carry_out_intervention(run, Intervention(samples=2, windows=1, controls=(), seed=33))
    record = main_results(windows)
    assert (record.edited, record.used, record.doses) == (None, None, [])
    assert len(record.map) == len(windows.sites)
