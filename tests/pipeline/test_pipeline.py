"""A whole small run, checked against slow loops over its own arrays; repeats and resumptions."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from run_helpers import arrays, assert_same, carry_out, small_study
from scipy import stats
from sklearn.linear_model import Ridge

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.summarize import summarise
from ldmprobe_core.assets import SUMMARY_SCHEMA
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """One run of the tiny study with its report; tests only read it."""
    study = small_study("whole", tiny_model, 14)
    run = carry_out(study, str(tmp_path_factory.mktemp("finished")))
    build_report(run, {"generate": 1.0})
    return run


def test_labels_are_the_labelers_of_the_stored_images(finished):
    labelers = model_cache.get_labelers(finished.study)
    images = finished.read("images", "image")
    for prop in ("foreground", "depth", "shading"):
        np.testing.assert_allclose(
            finished.read("labels", prop), labelers[prop](images), rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(
        finished.read("labels", "class_score"), labelers["class"](images), rtol=1e-4, atol=1e-5
    )
    last = finished.read("labels_trajectory", "depth", step=-1)
    np.testing.assert_allclose(last, finished.read("labels", "depth"), rtol=2e-3, atol=2e-3)


def test_a_cells_depth_scores_equal_scikit_learns(finished):
    """Ridge refitted on pixels by scikit-learn at the stored penalty, scored by scipy."""
    layer, step = finished.layers[0], 1
    split = finished.open("samples").split.values
    x = finished.read(f"activations/{layer}", "activation", step=step).astype(float)
    depth = finished.read("labels", "depth").astype(float)
    factor = depth.shape[1] // x.shape[1]
    big = x.repeat(factor, 1).repeat(factor, 2)
    probes = finished.open(f"probes/{layer}").sel(kind="ridge", property="depth").isel(step=step)
    train = split == "train"
    rows, wanted = big[train].reshape(-1, x.shape[-1]), depth[train].ravel()
    unit = x[train].reshape(-1, x.shape[-1]).var(0).mean()
    model = Ridge(alpha=float(probes.penalty) * unit * len(rows)).fit(rows, wanted)
    np.testing.assert_allclose(probes.weight.values, model.coef_, rtol=1e-4, atol=1e-7)
    scores = (
        finished.open("scores/depth")
        .score.sel(condition="probe", kind="ridge", layer=layer)
        .isel(step=step)
    )
    mean_map = depth[train].mean(0)
    for index in np.flatnonzero(~train):
        predicted = model.predict(big[index].reshape(-1, x.shape[-1]))
        truth = depth[index].ravel()
        here = scores.sel(sample=index)
        for metric, expected in {
            "pearson": stats.pearsonr(predicted, truth).statistic,
            "rmse": np.sqrt(((predicted - truth) ** 2).mean()),
            "pearson_residual": stats.pearsonr(
                predicted - mean_map.ravel(), truth - mean_map.ravel()
            ).statistic,
        }.items():
            assert float(here.sel(metric=metric)) == pytest.approx(expected, abs=2e-3), metric


def test_the_summary_is_what_a_loop_over_the_scores_finds(finished):
    record = json.loads(finished.location.read_text("summary.json"))
    for prop, head in (("foreground", "dice"), ("depth", "spearman"), ("shading", "spearman")):
        score = finished.open(f"scores/{prop}").score.sel(condition="probe", metric=head).load()
        score = score.drop_sel(layer="latents")  # a control, not a layer
        best, best_value = None, -np.inf
        for kind in score.kind.values:
            for step in score.step.values:
                for layer in score.layer.values:
                    here = score.sel(kind=kind, step=step, layer=layer)
                    value = (
                        np.nanmean(
                            np.append(here.values[here.split.values == "validation"], -np.inf)[:-1]
                        )
                        if np.isfinite(here.values[here.split.values == "validation"]).any()
                        else -np.inf
                    )
                    if value > best_value:
                        best, best_value = (str(kind), int(step), str(layer)), value
        found = record["properties"][prop]["best"]
        assert (found["kind"], found["step"], found["layer"]) == best
        here = score.sel(kind=best[0], step=best[1], layer=best[2])
        test = here.values[here.split.values == "test"]
        assert found["mean"] == pytest.approx(np.nanmean(test))
        assert found["low"] <= found["mean"] <= found["high"]
        assert record["properties"][prop]["undefined"]["best"] == np.isnan(test).sum()
        assert record["properties"][prop]["last"]["step"] == 3


def test_the_summary_fits_the_schema_that_ships(finished):
    shipped = json.loads(SUMMARY_SCHEMA.read_text())
    assert shipped == Summary.model_json_schema(by_alias=True, mode="serialization")
    record = json.loads(finished.location.read_text("summary.json"))
    jsonschema.validate(record, shipped)
    for key in ("seconds", "bytes", "samples", "versions", "study_hash"):
        assert record[key]
    for found in record["properties"].values():
        assert set(found) == {"best", "last", "emergence", "controls", "undefined"}
        assert set(found["emergence"]) == {"probe", "decoded", "clean", "lead"}
        names = {"position", "shuffled_labels", "permuted_weights", "latents", "mlp"}
        assert set(found["controls"]) == names
    del record["properties"]["depth"]["best"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, shipped)


def test_the_labeler_agrees_with_itself_at_the_last_step(finished):
    """s(T) is 1 for labelers that read the finished image, up to float16 storage."""
    findings = summarise(finished, {})
    for curves in findings.curves.values():
        last = curves.sources["trajectory"][-1]
        assert np.nanmin(last) > (0.9 if curves.kind == "logistic" else 0.99)


def test_two_runs_are_equal_bit_for_bit(finished, tmp_path):
    assert_same(finished, carry_out(finished.study, str(tmp_path)))


def test_order_of_batches_and_cells_changes_nothing(finished, tmp_path):
    study = finished.study
    run = prepare_run(study, str(tmp_path))
    for batch in reversed(range(len(study.batches(run.n_stored)))):
        generate_batch(run.url, batch)
    for batch in reversed(range(len(study.batches(run.n_stored)))):
        label_batch(run.url, batch)
    for layer in reversed(run.probe_inputs):
        for step in (3, 1, 2):
            probe_cell(run.url, step, layer)
    assert_same(finished, run)


def test_what_is_marked_is_left_alone(finished):
    assert generate_batch(finished.url, 0)["samples"] == 0
    assert label_batch(finished.url, 0)["images"] == 0
    assert probe_cell(finished.url, 1, finished.layers[0])["seconds"] == 0


def test_a_stage_does_not_go_on_from_what_is_not_there(finished, tmp_path):
    run = prepare_run(finished.study, str(tmp_path))
    with pytest.raises(RuntimeError, match="batch 0 cannot be labeled before it is generated"):
        label_batch(run.url, 0)
    for batch in (0, 1, 3):
        generate_batch(run.url, batch)
        label_batch(run.url, batch)
    with pytest.raises(RuntimeError, match=r"1 units are not labeled yet.*\(2,\)"):
        probe_cell(run.url, 1, run.layers[0])
    generate_batch(run.url, 2)
    label_batch(run.url, 2)
    probe_cell(run.url, 1, run.layers[0])
    with pytest.raises(RuntimeError, match=r"8 units are not probed yet.*\(0, 1\)"):
        build_report(run, {})
    assert not run.location.has("summary.json")


def test_many_starts_at_once_lay_one_run_out(finished, tmp_path):
    study = finished.study
    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(lambda _: prepare_run(study, str(tmp_path)), range(6)))
    assert len({run.location.read_text("identity") for run in runs}) == 1
    generate_batch(runs[0].url, 0)
    prepare_run(study, str(tmp_path))
    assert runs[0].progress.is_done("generated", 0)
    assert [path.name for path in tmp_path.iterdir()] == [study.run_name]


def test_a_run_that_is_resumed_is_carried_out_where_it_is_now_asked_for(finished, tmp_path):
    study = finished.study
    run = prepare_run(study, str(tmp_path))
    elsewhere = study.model_copy(
        update={"execution": study.execution.model_copy(update={"device": "cpu", "workers": 7})}
    )
    assert prepare_run(elsewhere, str(tmp_path)).study.execution.workers == 7
    assert run.study.execution.device == "cpu"


def test_a_batch_without_its_mark_is_redone(finished, tmp_path):
    study = finished.study
    run = prepare_run(study, str(tmp_path))
    generate_batch(run.url, 1)
    garbage = {"nonfinite": np.full((4, 3), 77, np.int32)}
    run.write(
        f"activations/{run.layers[0]}", garbage, sample=slice(0, 4)
    )  # cut off before its mark
    carry_out(study, str(tmp_path))
    assert_same(finished, run)


def test_not_finite_activations_are_counted_and_leave_no_score(finished, tmp_path):
    study = finished.study
    run = prepare_run(study, str(tmp_path))
    for batch in range(len(study.batches(run.n_stored))):
        generate_batch(run.url, batch)
        label_batch(run.url, batch)
    layer = run.layers[0]
    heldout = int(run.open("scores/depth").sample.values[0])
    trained = int(np.flatnonzero(run.open("samples").split.values == "train")[0])
    values = run.read(f"activations/{layer}", "activation")
    bad = run.read(f"activations/{layer}", "nonfinite")
    for sample in (heldout, trained):
        values[sample, 0, 1, 1, 2] = np.inf
        bad[sample, 0] = 1
    run.write(f"activations/{layer}", {"activation": values, "nonfinite": bad})
    permuted_denoiser = f"activations_permuted/{layer}"
    values = run.read(permuted_denoiser, "activation")
    values[..., 0] = np.nan  # no cell of this layer can be probed on the permuted denoiser
    run.write(permuted_denoiser, {"activation": values, "nonfinite": np.full_like(bad, 5)})
    for step in (1, 2, 3):
        for name in run.probe_inputs:
            probe_cell(run.url, step, name)
    score = run.open("scores/depth").score.sel(condition="probe", kind="ridge", metric="spearman")
    assert np.isnan(score.sel(step=1, layer=layer, sample=heldout))
    rest = score.sel(step=1, layer=layer).drop_sel(sample=heldout)
    assert np.isfinite(rest).all()
    assert np.isfinite(score.sel(step=2, layer=layer)).all()
    weights = run.open(f"probes/{layer}").weight.sel(kind="ridge", step=1)
    assert np.isfinite(weights).all()
    summary = summarise(run, {}).summary
    assert summary.nonfinite == 2
    assert summary.nonfinite_permuted == 5 * bad.size
    for found in summary.properties.values():
        if found.best.layer == layer:  # an undefined control is shown as undefined, not as absent
            assert found.controls.permuted_weights.mean is None
            assert found.controls.permuted_weights.undefined == summary.samples["test"]


def test_a_worker_with_other_labeler_weights_is_refused(finished, monkeypatch):
    monkeypatch.setattr(model_cache, "check_labeler", lambda prop, spec: "another")
    monkeypatch.setattr(model_cache, "thread_local_models", model_cache.ThreadLocalModels())
    with pytest.raises(UserError, match=r"labels\.foreground has weights with fingerprint another"):
        model_cache.get_labelers(finished.study, finished.attributes()["labeler_fingerprints"])


def test_two_threads_of_a_worker_give_the_bytes_of_one(finished, tmp_path):
    """Each has a model of its own on the CPU, and they generate and label at the same time."""
    run = prepare_run(finished.study, str(tmp_path))
    both = threading.Barrier(2, timeout=60)

    def unit(batch):
        both.wait()
        generate_batch(run.url, batch)
        both.wait()
        label_batch(run.url, batch)
        both.wait()
        return threading.get_ident()

    before = model_cache.load_counts["generator"]
    with ThreadPoolExecutor(2) as pool:
        batches = range(len(run.study.batches(run.n_stored)) // 2 * 2)
        assert len(set(pool.map(unit, batches))) == 2
    assert model_cache.load_counts["generator"] == before + 2
    rest = {"sample": slice(0, 4 * len(batches))}
    for group, name in (("images", "clean"), ("labels_clean", "depth"), ("labels", "foreground")):
        np.testing.assert_array_equal(
            run.read(group, name, **rest), finished.read(group, name, **rest)
        )


def test_on_a_gpu_threads_take_turns_with_one_model(finished, monkeypatch):
    class Cuda:
        type = "cuda"

    monkeypatch.setattr(model_cache, "pick_device", lambda wanted: Cuda)
    monkeypatch.setattr(model_cache, "shared_models", {})
    study, made = finished.study, []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: made.append(model_cache._get_or_load(study, "generator", "key", object))
        )
        thread.start()
        thread.join(30)
    assert made[0] is made[1]
    with model_cache.model_access(study):
        assert not model_cache._device.acquire(blocking=False)


def test_images_of_a_prompt_are_one_group(tiny_study, tmp_path):
    study = tiny_study(prompts={"items": [f"a ball {i}" for i in range(4)], "samples": 12})
    run = carry_out(study, str(tmp_path))
    samples = summarise(run, {}).summary.samples
    assert samples["total"] == 12
    assert samples["test"] == 3 * samples["test_groups"]


def test_report_shows_prompts_as_text(tiny_study, tmp_path):
    evil = [f"<script>alert({i})</script> ../../etc" for i in range(8)]
    study = tiny_study(
        prompts={"items": evil, "samples": 8},
        controls={"shuffled_labels": False, "permuted_weights": False},
    )
    run = carry_out(study, str(tmp_path))
    build_report(run, {})
    page = run.location.read_text("report/index.html")
    assert "<script>alert(" not in page
    assert page.count("<script") == 2  # plotly's own file, and what draws with it
    assert "&lt;script&gt;alert(" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    record = json.loads(run.location.read_text("summary.json"))
    assert record["properties"]["depth"]["controls"]["permuted_weights"] is None
    for name in ("foreground-heatmap.png", "depth-curves.png"):
        assert (Path(run.url) / "report" / name).stat().st_size > 5_000


KILLED = """
import os, signal, sys
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
import json
sys.path.insert(0, "tests/helpers")
from run_helpers import carry_out
deaths = int(sys.argv[3])
real = Run.write
count = 0
def write(self, *a, **k):
    global count
    count += 1
    if count == deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *a, **k)
Run.write = write
carry_out(parse_study(json.load(open(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.slow
def test_kill_nine_at_many_moments_then_resume_is_equal(finished, tmp_path):
    """Killed in the middle of writing, again and again; what is resumed ends up the same."""
    path = tmp_path / "study.json"
    path.write_text(finished.study.to_json())
    codes = []
    for deaths in (2, 5, 9, 4, 17):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(tmp_path / "runs"), str(deaths)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL] * 5
    run = carry_out(finished.study, str(tmp_path / "runs"))
    assert_same(finished, run)


def test_every_array_of_a_finished_run_is_filled(finished):
    for path, values in arrays(finished).items():
        if path.startswith(("activations", "labels")) and values.dtype.kind == "f":
            assert np.isfinite(values).all(), path
        if path.startswith("progress/") and values.dtype == np.uint8:
            assert (values == 1).all(), path


def test_a_run_is_its_own_record(finished):
    again = Run(finished.url).study
    assert again.hash == finished.study.hash
    attributes = finished.attributes()
    assert attributes["study_hash"] == again.hash
    assert {"torch", "diffusers", "zarr", "python"} <= set(attributes["versions"])
