"""Interventions on a small run: unedited bit for bit, readings at the target, scores by a loop."""

import json

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import xarray as xr
from run_helpers import carry_out, small_study

from flows import cli
from ldmprobe_core.analysis.report import intervention_figures
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.directions import activation_statistics, directions_of
from ldmprobe_core.interventions.editor import Editor, make_edit, sample_edited
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.results import read_intervention_summary, summarise_intervention
from ldmprobe_core.interventions.scores import background_change
from ldmprobe_core.interventions.spec import Intervention, parse_intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch, edit_units
from ldmprobe_core.interventions.targets import Target, target_maps
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.probing.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.metrics import dice
from ldmprobe_core.storage.filesystem import Location


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    run = carry_out(small_study("edits", tiny_model, 16), str(tmp_path_factory.mktemp("edits")))
    build_report(run, {"generate": 1.0})
    return run


def carry(run, what):
    name = create_intervention(run, what)
    for target, batch in edit_units(run, name):
        edit_batch(run.url, name, target, batch)
    return summarise_intervention(run, name, 1.0)


def use_models(run):
    study = run.study
    return model_cache.get_sampler(study, run.attributes["model_fingerprint"])


def test_strength_zero_is_the_unedited_image_bit_for_bit(run):
    sampler = use_models(run)
    labels = label_set(run)
    what = Intervention(samples=4, strength=0.0, layers=("*",), steps=3)
    plan = plan_intervention(run, what)
    samples = [run.samples[i] for i in plan.samples]
    aims = target_maps(labels.maps["foreground"][plan.samples], what.targets)[0]
    editor = Editor(
        sampler,
        directions_of(run, what, plan, labels),
        make_edit(what, plan.kind, aims, None),
    )
    plain = sample_edited(sampler, samples, None)
    np.testing.assert_array_equal(sample_edited(sampler, samples, editor), plain)
    whole = what.model_copy(update={"strength": 1.0})
    editor.change = make_edit(whole, plan.kind, 1 - aims, None)
    assert (sample_edited(sampler, samples, editor) != plain).any()
    assert not any(m._forward_hooks for m in sampler.denoiser.modules())


def test_after_the_edit_the_probe_reads_the_target_in_the_first_steps_only(run):
    """Every call of an edited layer is recorded behind the edit, and read by the stored probe."""
    sampler = use_models(run)
    labels = label_set(run)
    what = Intervention(samples=3, layers=("mid_block*",), steps=2, confidence=0.9)
    plan = plan_intervention(run, what)
    (layer,) = plan.layers
    samples = [run.samples[i] for i in plan.samples]
    aims = target_maps(labels.maps["foreground"][plan.samples], what.targets)[0]
    directions = directions_of(run, what, plan, labels)
    editor = Editor(sampler, directions, make_edit(what, plan.kind, aims, None))
    module = dict(sampler.denoiser.named_modules())[layer]
    seen = []
    with editor():
        module.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
        with torch.no_grad():
            sampler.pipeline(
                prompt=[s.prompt for s in samples],
                num_inference_steps=3,
                guidance_scale=2.0,
                generator=[torch.Generator().manual_seed(s.seed) for s in samples],
                output_type="latent",
            )
    module._forward_hooks.clear()
    side = int(seen[0].shape[1] ** 0.5)
    share = aims.reshape(3, side, 16 // side, side, 16 // side).mean((2, 4))
    wanted = np.log(np.clip(share, 0.1, 0.9) / (1 - np.clip(share, 0.1, 0.9)))
    probes = run.open(f"probes/{layer}").sel(property="foreground", kind="logistic")
    for step, output in enumerate(seen, start=1):
        weight = probes.weight.sel(step=step).values
        read = output[3:].double().numpy() @ weight + float(probes.bias.sel(step=step))
        error = np.abs(read.reshape(3, side, side) - wanted).max()
        assert (error < 1e-4) == (step <= 2)


@pytest.mark.parametrize("prop", ["foreground", "depth"])
def test_findings_are_what_a_loop_over_the_images_finds(run, prop):
    what = Intervention(
        prop=prop, samples=5, targets=(Target(dx=0.25), Target(dy=-0.125)), steps=3, layers=("*",)
    )
    found = carry(run, what)
    data = xr.open_zarr(run.url, group=f"interventions/{what.name}", chunks=None)
    labelers = model_cache.get_labelers(run.study)
    index = [int(i) for i in data.sample.values]
    own = run.read("labels", prop, sample=index)
    scores = {"unedited": []}
    for t in range(2):
        aim = data.target_map.values[t]
        for condition, images in zip(data.condition.values, data.image.values[:, t], strict=True):
            label = labelers[prop](images)
            np.testing.assert_allclose(
                data.label.sel(condition=condition).values[t], label, rtol=1e-3, atol=1e-3
            )
            if prop == "foreground":
                scores.setdefault(str(condition), []).append(dice(label > 0.5, aim > 0.5))
        if prop == "foreground":
            scores["unedited"].append(dice(own > 0.5, aim > 0.5))
    if prop == "foreground":
        np.testing.assert_allclose(found.unedited.mean, np.mean(scores["unedited"]), atol=1e-6)
        for condition, effect in found.effects.items():
            np.testing.assert_allclose(effect.mean.mean, np.mean(scores[condition]), atol=1e-6)
            gap = np.array(scores[condition]) - scores["unedited"]
            np.testing.assert_allclose(effect.less_unedited.mean, gap.mean(), atol=1e-6)
            assert effect.improved == pytest.approx((gap > 0).mean())
    assert found.pairs == 10
    assert set(found.effects) == {"edited", "random", "shuffled"}
    assert read_intervention_summary(run, what.name) == found
    # again: nothing is done anew, and the same comes out
    assert all(
        edit_batch(run.url, what.name, t, b)["images"] == 0 for t, b in edit_units(run, what.name)
    )
    assert summarise_intervention(run, what.name, 1.0) == found


def test_a_batch_without_its_mark_is_edited_anew_and_comes_out_the_same(run):
    what = Intervention(samples=3, steps=2, layers=("*",), seed=4)
    create_intervention(run, what)
    edit_batch(run.url, what.name, 0, 0)
    group = f"interventions/{what.name}"
    before = run.read(group, "image")
    run.write(group, {"done": np.zeros((1, 1), np.uint8), "image": np.zeros_like(before)})
    with pytest.raises(RuntimeError, match="not finished"):
        summarise_intervention(run, what.name, 0.0)
    edit_batch(run.url, what.name, 0, 0)
    np.testing.assert_array_equal(run.read(group, "image"), before)


def test_a_layout_that_was_cut_off_is_laid_out_anew(run, monkeypatch):
    what = Intervention(samples=2, steps=1, seed=11)
    real = Location.write_text

    def cut_off(self, name, text):
        if name.endswith("intervention.json"):
            raise OSError("cut")
        real(self, name, text)

    monkeypatch.setattr(Location, "write_text", cut_off)
    with pytest.raises(OSError, match="cut"):
        create_intervention(run, what)
    monkeypatch.setattr(Location, "write_text", real)
    assert carry(run, what).pairs == 2


def test_a_target_file_is_known_by_its_contents(run, tmp_path):
    path = tmp_path / "t.npy"
    names = []
    for i in (0, 1):
        mask = np.zeros((16, 16), np.float32)
        mask[4 * i : 8 + 4 * i, 3:9] = 1
        np.save(path, mask)
        names.append(
            create_intervention(run, Intervention(samples=1, targets=(Target(file=str(path)),)))
        )
        aim = run.read(f"interventions/{names[-1]}", "target_map")
        np.testing.assert_array_equal(aim[0, 0], mask)
    assert names[0] != names[1]


def test_an_overflowed_sample_takes_no_part_in_the_covariance():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, 3, 3, 4)).astype(np.float16)
    tokens = np.concatenate([tokens, tokens[:2]])
    tokens[2, 0, 0, 0] = np.inf  # that sample takes no part, and the last is not a training sample
    labels = LabelSet({}, {}, train=np.arange(6), validation=np.array([6]), heldout=np.array([6]))
    expected = np.cov(tokens[[0, 1, 3, 4, 5]].reshape(-1, 4).astype(float), rowvar=False, bias=True)
    np.testing.assert_allclose(
        activation_statistics(tokens, labels).covariance, expected, rtol=1e-9
    )


def test_samples_of_a_prompt_go_together_over_targets(run):
    """Two targets of a sample are not independent: the interval is over prompts."""
    what = Intervention(samples=5, targets=(Target(dx=0.25), Target(dx=0.2501)), steps=1)
    found = carry(run, what)
    score = run.read(f"interventions/{what.name}", "score", condition=0, metric=0)
    prompts = [run.samples[i].prompt for i in plan_intervention(run, what).samples]
    expected = Bootstrap(np.array(prompts * 2), 200, 0.95, 0).interval(score.ravel().astype(float))
    assert found.effects["edited"].mean.low == pytest.approx(expected.low)


def test_change_outside_counts_only_what_is_in_neither_mask():
    before = np.zeros((1, 4, 4, 3), np.uint8)
    after = before.copy()
    after[0, 0, 0] = 255  # in the object
    after[0, 3, 3] = (0, 0, 153)  # outside: 0.2 on average
    own, wanted = np.zeros((2, 1, 4, 4), bool)
    own[0, 0, 0] = wanted[0, 0, 1] = True
    assert background_change(before, after, own, wanted)[0] == pytest.approx(0.2 / 14)
    assert np.isnan(background_change(before, after, ~own, own)[0])


def test_the_report_shows_it_and_a_stranger_finds_it(run):
    what = Intervention(samples=4, targets=(Target(dx=0.25), Target(dx=-0.25)), steps=2)
    carry(run, what)
    build_report(run, {"generate": 1.0})
    page = run.location.read_text("report/index.html")
    assert "<h2>Interventions</h2>" in page
    assert "random change of the same norm" in page
    for suffix in (".png", "-strip.png", ".gif"):
        assert f"{what.name}{suffix}" in page
    assert run.location.read_bytes(f"report/{what.name}.gif")[:6] == b"GIF89a"
    tree = xr.open_datatree(run.url, engine="zarr")
    assert tree[f"interventions/{what.name}"].image.dims[0] == "condition"


def test_a_film_is_written_where_ffmpeg_is(run, monkeypatch, tmp_path):
    what = Intervention(samples=2, targets=(Target(dx=0.25), Target(dx=-0.25)), steps=1)
    carry(run, what)
    film = intervention_figures.film(run, what.name, imageio_ffmpeg.get_ffmpeg_exe())
    assert film[4:8] == b"ftyp"
    assert len(film) > 500
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    build_report(run, {"generate": 1.0})
    assert f"{what.name}.mp4" not in run.location.read_text("report/index.html")


def test_mistakes_are_told_before_any_work(run, monkeypatch, capsys):
    def fails(words, **content):
        with pytest.raises(UserError, match=words):
            create_intervention(run, Intervention(**content))

    fails("samples is 99, and the run has", samples=99)
    fails("steps is 9, and the run has 3", steps=9)
    fails(r"layers nothing\.\* match none of", layers=("nothing.*",))
    fails("kind is 'adam', which no probe", kind="adam")
    fails("kind is 'logistic', which no probe of depth", prop="depth", kind="logistic")
    fails("layers none.* match none of", layers=("*attn1", "none.*"))
    fails("confidence is of logits", kind="ridge", confidence=0.9)
    with pytest.raises(UserError, match="strength and confidence are of exact edits"):
        parse_intervention({"method": "adam", "strength": 0.3})
    fails("method adam needs logits", method="adam", kind="ridge")
    fails("is not among the run's test samples", chosen=(999,))
    fails("there is no such file", samples=2, targets=(Target(file="/none.png"),))
    monkeypatch.setattr("ldmprobe_core.pipeline.prepare.fingerprint", lambda folder: "another")
    fails("was made by a model with fingerprint", samples=2)
    monkeypatch.undo()

    def call(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", "intervene", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert stop.value.code == 2
        assert "Prefect" not in captured.out
        return " ".join(captured.err.split())

    assert "prop: 'shape'" in call(run.url, "--property", "shape")
    assert "--shift is 'right'" in call(run.url, "--shift", "right")
    assert "strength is 2" in call(run.url, "--strength", "2")
    assert "holds no summary.json" in call(run.url + "-none")


def test_missing_probes_are_named(tiny_model, tmp_path):
    study = small_study("half", tiny_model, 8)
    run = prepare_run(study, str(tmp_path))
    with pytest.raises(UserError, match=r"has no probe of .* at step 1: finish the run"):
        plan_intervention(run, Intervention(samples=1))


def test_a_name_tells_settings_apart():
    assert Intervention().name == Intervention().name
    assert Intervention(strength=0.5).name != Intervention().name
    assert json.loads(Intervention().model_dump_json())["confidence"] == 0.98
