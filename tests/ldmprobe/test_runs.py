"""Tests of the Python API for studies and runs, against a plain loop and the stored arrays."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from run_helpers import HELD_OUT, assert_same, carry_out, small_study, statistics_study

import ldmprobe as lp
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.pipeline import units
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lifecycle.lease_files import Holder, lease_name, lease_text
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError
from ldmprobe_core.storage.units import GENERATE, PROBE


@pytest.fixture(scope="module")
def study(tiny_model):
    return small_study("api", tiny_model, 12)


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    return lp.run_study(study, str(tmp_path_factory.mktemp("runs")), progress=False)


def test_every_public_name_can_be_imported():
    for name in lp.__all__:
        assert getattr(lp, name) is not None
    assert set(lp.__all__) <= set(dir(lp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lp.nothing  # noqa: B018


def test_opening_a_run_loads_neither_torch_nor_diffusers(run):
    code = (
        "import sys, ldmprobe as lp\n"
        f"run = lp.open_run({run.url!r})\n"
        "assert run.scores('depth').sizes['sample'] > 0\n"
        "assert run.summary.properties['depth'].best.step >= 1\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'prefect'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_study_gives_the_bytes_of_a_plain_loop(run, study, tmp_path):
    assert_same(run, carry_out(study, str(tmp_path)))


def test_run_study_reports_the_peak_of_memory_beside_the_plan(run, study):
    memory = run.summary.memory["memory"]
    assert memory.planned == sum(lp.plan(study).memory.values())
    # The peak is that of this process so far, which has imported torch and loaded the models.
    assert 10**8 < memory.measured <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    page = run.location.read_text("report/index.html")
    assert f"{memory.measured / 1e9:.2f} GB, planned {memory.planned / 1e9:.2f} GB" in page


def test_run_study_of_a_finished_run_changes_nothing(run, study):
    before = run.location.read_text("summary.json")
    again = lp.run_study(study, run.url.rpartition("/")[0], progress=False)
    assert (again.url, again.location.read_text("summary.json")) == (run.url, before)


@pytest.fixture
def partial(run, tmp_path):
    """A copy of the run that is not finished, because two of its units are not marked."""
    folder = tmp_path / Path(run.url).name
    shutil.copytree(run.url, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "report")
    copy = Run(str(folder))
    copy.progress.clear(GENERATE, 1)
    copy.progress.clear(PROBE, 2, 0)
    return copy


def test_reading_an_unfinished_run_tells_lost_chunks_from_missing_ones(partial):
    layer = partial.layers[0]
    for chunk in ("score/c/0/0/0/2/0/0", "score/c/0/0/0/1/1/0"):
        (Path(partial.url) / "scores/depth" / chunk).unlink()
    for chunk in ("c/1/0/0/0/0", "c/2/0/0/0/0"):
        (Path(partial.url) / f"activations/{layer}/activation" / chunk).unlink()
    run = lp.open_run(partial.url)
    scores, activations = run.scores("depth"), run.activations(layer)
    assert np.isnan(scores.isel(step=2, layer=0)).all()
    assert np.isfinite(scores.isel(step=0, layer=1).sel(condition="probe")).any()
    assert np.isnan(activations.isel(step=0, sample=5)).all()
    assert np.isfinite(activations.isel(step=1, sample=5)).all()
    # A sample has a chunk of its own here; batch 1 is not generated, and batch 2 is.
    stored = Path(partial.url) / "activations/clean_pixels/activation/c"
    for sample in (5, 9):
        (stored / f"{sample}/0/0/0/0").unlink()
    pixels = run.activations("clean_pixels")
    assert np.isnan(pixels.isel(sample=5)).all()
    for lost in (
        scores.isel(step=1, layer=1),
        activations.isel(step=0, sample=9),
        pixels.isel(sample=9),
    ):
        with pytest.raises(CorruptChunkError, match="is missing"):
            lost.load()


def test_run_study_resumes_what_is_not_marked(run, study, partial, tmp_path):
    resumed = lp.run_study(study, str(tmp_path), progress=False)
    assert resumed.url == partial.url
    assert_same(run, resumed)


def test_run_study_ends_after_the_unit_in_which_another_process_took_over(
    study, tmp_path, monkeypatch
):
    """A laptop that slept for longer than a lease lasts, for example."""
    carry_out_unit, done = units.carry_out_unit, []

    def overtaken(verb, url, *index):
        done.append((verb, *index))
        holder = Holder("k", "another", "another-machine/1", 77, 0.0)
        Location(f"{url}.lease").write_text(lease_name(2), lease_text(holder))
        return carry_out_unit(verb, url, *index)

    monkeypatch.setattr(units, "carry_out_unit", overtaken)
    with pytest.raises(RunError, match="was taken over by another process"):
        lp.run_study(study, str(tmp_path), progress=False)
    assert done == [("generate", 0)]


def test_run_study_refuses_what_check_refuses(study, tmp_path):
    wrong = study.model_copy(
        update={"capture": study.capture.model_copy(update={"layers": ("nowhere",)})}
    )
    with pytest.raises(lp.UserError, match=r"capture\.layers: 'nowhere' matches no module"):
        lp.run_study(wrong, str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


def test_scores_are_the_stored_array_with_its_coordinates(run):
    scores = run.scores("depth")
    assert scores.dims == ("condition", "kind", "metric", "step", "layer", "sample")
    np.testing.assert_array_equal(scores.values, run.read("scores/depth", "score"))
    with pytest.raises(lp.UserError, match="property: 'normals' is not probed"):
        run.scores("normals")


def test_activations_are_a_dask_array_of_the_stored_chunks_with_samples_as_coordinates(run):
    layer = run.layers[0]
    activations = run.activations(layer)
    assert activations.dims == ("sample", "step", "y", "x", "channel")
    assert activations.chunks[:2] == ((4, 4, 4), (1, 1, 1))
    stored = zarr.open_group(run.url, mode="r")
    values = stored[f"activations/{layer}/activation"][...]
    np.testing.assert_array_equal(activations.values, values)
    for name in ("prompt", "split", "category"):
        assert activations[name].values.tolist() == stored[f"samples/{name}"][...].tolist()
    train = stored["samples/split"][...] == "train"
    means = activations.sel(sample=activations.split == "train").mean("sample", dtype="float64")
    np.testing.assert_allclose(means, values[train].mean(0, dtype="float64"), rtol=1e-6)


def test_activations_of_a_run_that_keeps_sums_are_those_of_its_heldout_samples(
    tiny_model, tmp_path
):
    run = lp.open_run(prepare_run(statistics_study(tiny_model, "statistics"), str(tmp_path)).url)
    activations = run.activations(run.layers[0])
    assert activations.sizes["sample"] == HELD_OUT
    assert set(activations.split.values) == {"validation", "test"}
    with pytest.raises(lp.UserError, match="layer: 'x' is not in the run"):
        run.activations("x")


def test_a_layer_may_be_called_by_its_short_name(run):
    layer = run.layers[0]
    short = layer.replace(".transformer_blocks.0", "")
    assert short != layer
    weight = run.probe("depth", 2, layer).weight
    for name in (short, layer.partition(".transformer_blocks")[0]):
        np.testing.assert_array_equal(run.probe("depth", 2, name).weight, weight)
        assert run.activations(name).shape == run.activations(layer).shape
        assert run.tokens(name).channels == run.tokens(layer).channels
    with pytest.raises(lp.UserError, match=r"layer: '\*attn1' is 2 layers of the run\. Fix"):
        run.probe("depth", 2, "*attn1")


def test_a_probe_predicts_what_its_stored_weights_say(run):
    layer = run.layers[0]
    probe = run.probe("depth", step=2, layer=layer)
    stored = run.open(f"probes/{layer}").sel(property="depth", step=2, kind="ridge")
    activations = run.activations(layer).sel(step=2).values
    expected = activations.astype(float) @ stored.weight.values + float(stored.bias)
    expected += stored.position.values
    np.testing.assert_allclose(probe.predict(activations), expected, rtol=1e-12, atol=1e-12)
    mask_probe = run.probe("foreground", 1, layer, kind="logistic")
    assert mask_probe.weight.shape == probe.weight.shape
    stored = run.open(f"probes/{layer}").sel(property="foreground", step=1, kind="logistic")
    assert mask_probe.cut == float(stored.cut)
    assert np.isnan(probe.cut)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"prop": "depth", "step": 9, "layer": None},
            "step: 9 is not in the run",
        ),
        ({"prop": "depth", "step": True, "layer": None}, "step: True is not in the run"),
        ({"prop": "depth", "step": 1.0, "layer": None}, "step: 1.0 is not in the run"),
        ({"prop": "depth", "step": [1], "layer": None}, r"step: \[1\] is not in the run"),
        ({"prop": "depth", "step": 1, "layer": "x"}, "layer: 'x' is not in the run"),
        ({"prop": "depth", "step": 1, "layer": None, "kind": "adam"}, "kind: 'adam' is not in the"),
        (
            {"prop": "depth", "step": 1, "layer": None, "kind": "logistic"},
            "no linear probe of depth",
        ),
    ],
)
def test_a_probe_that_is_not_there_is_one_sentence(run, arguments, words):
    arguments["layer"] = arguments["layer"] or run.layers[0]
    with pytest.raises(lp.UserError, match=words):
        run.probe(**arguments)


def test_the_plan_prints_layers_and_sizes(study):
    text = str(lp.plan(study))
    assert "12 samples, 3 steps, 2 layers, 6 cells" in text
    assert "mid_block.attentions.0.transformer_blocks.0.attn1: " in text


@pytest.mark.parametrize(("key", "value", "read"), [
    ("prompts.items", ["😀", "é\u2028e", "\\ud83d\\ude00"], ("😀", "é\u2028e", "\\ud83d\\ude00")),
    ("prompts.items", np.array(["a", "b", "c"]), ("a", "b", "c")),
    ("sampling.steps", np.int64(3), 3),
    ("sampling.guidance", np.float32(2.5), 2.5),
    ("controls.latents", np.bool_(False), False),
    ("model.source", Path("/models/m"), "/models/m"),
])  # fmt: skip
def test_load_study_takes_values_of_python_and_numpy(key, value, read):
    section, name = key.split(".")
    assert getattr(getattr(lp.load_study("tabletop", {key: value}), section), name) == read


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", 1j])
def test_load_study_refuses_a_value_that_a_study_cannot_have(value):
    with pytest.raises(UserError, match=r"sampling\.steps: .*of type .*Fix: give text"):
        lp.load_study("tabletop", {"sampling.steps": value})


@pytest.mark.parametrize("shift", ["x", (0.1,), [(0.1, 0.2), (0.3,)], {"dx": 1}])
def test_intervene_refuses_a_shift_that_is_not_pairs_of_numbers(run, shift):
    with pytest.raises(UserError, match=r"shift: not pairs of numbers.*Fix: "):
        lp.intervene(run, "foreground", shift=shift)


@pytest.mark.parametrize("source", [Path("tabletop"), "tabletop"])
def test_load_study_takes_a_path(source):
    assert lp.load_study(source).name == "tabletop"


@pytest.mark.parametrize("source", [None, 3, ["tabletop"]])
def test_load_study_refuses_what_is_no_path(source):
    with pytest.raises(UserError, match=r"study .*: not a path.*Fix: "):
        lp.load_study(source)


def test_open_run_takes_a_path(run):
    assert lp.open_run(Path(run.url)).url == run.url


@pytest.mark.parametrize("address", [None, 3, [], b"runs"])
def test_addresses_of_other_types_are_refused(study, address):
    with pytest.raises(UserError, match=r"store .*: not an address.*Fix: "):
        lp.open_run(address)
    with pytest.raises(UserError, match=r"store .*: not an address.*Fix: "):
        lp.run_study(study, address)


def test_compare_refuses_what_is_not_an_opened_run(run):
    with pytest.raises(
        UserError, match=r"^runs: .* is no run .str.*Fix: open it with lp\.open_run"
    ):
        lp.compare([run, run.url])


@pytest.mark.parametrize("call", [lp.write_report, lp.intervene])
def test_functions_of_runs_refuse_an_address(run, call):
    with pytest.raises(UserError, match=r"^run: .* is no run .str.*Fix: open it with lp\.open_run"):
        call(run.url)


def test_compare_refuses_a_single_run(run):
    with pytest.raises(UserError, match=r"runs: .* is not a list .Run.*Fix: give a list of two"):
        lp.compare(run)


@pytest.mark.parametrize("call", [lp.plan, lp.run_study])
@pytest.mark.parametrize("study", ["tabletop", {"name": "x"}])
def test_functions_of_studies_refuse_a_name(call, study):
    with pytest.raises(
        UserError, match=r"study: .* is no study .*Fix: load it with lp\.load_study"
    ):
        call(study)


def test_load_study_takes_one_override_as_text_and_refuses_other_values():
    assert lp.load_study("tabletop", "sampling.steps=3").sampling.steps == 3
    with pytest.raises(UserError, match=r"overrides: 3 is not text of the form key=value.*Fix: "):
        lp.load_study("tabletop", [3])


def test_load_study_takes_overrides_as_a_mapping():
    study = lp.load_study("tabletop", {"prompts.samples": 48, "capture.layers": ["mid_block*"]})
    assert (study.count, study.capture.layers) == (48, ("mid_block*",))


def test_intervene_scores_edits_of_test_samples(run):
    summary = lp.intervene(run, "foreground", shift=(0.2, 0.0), samples=2, steps=1)
    assert summary.pairs == 2
    nulls = {"orthogonal", "coherent", "permuted", "own_label"}
    assert set(summary.effects) == {"edited", *nulls}
    assert str(summary.intervention.targets[0]) == "shift 0.2, 0"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift": (0.1, 0.0), "targets": ({"mirror": True},)}, "shift: given together"),
        ({"shift": (0.2, 0.0), "method": "leace"}, r"targets: the method leace does not use it"),
        ({"samples": 2, "chosen": (1,)}, "samples: it does not apply to chosen samples"),
        ({"stepps": 2}, "stepps is not a key of an intervention"),
    ],
)
def test_intervene_refuses_settings_without_effect(run, settings, words):
    with pytest.raises(lp.UserError, match=words):
        lp.intervene(run, "foreground", **settings)


def test_write_report_returns_the_page(run):
    page = lp.write_report(run)
    assert page.endswith("/report/index.html")
    assert "<html" in run.location.read_text("report/index.html")


def test_open_run_refuses_what_is_no_run(tmp_path):
    with pytest.raises(lp.UserError):
        lp.open_run(str(tmp_path))
