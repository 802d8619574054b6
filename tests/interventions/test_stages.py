"""Units of work of an intervention: creation, resuming, target files."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from intervention_helpers import carry_out_intervention
from model_helpers import architecture_study
from run_helpers import carry_out, small_study

from ldmprobe_core.analysis.report.intervention_text import effect_rows
from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.interventions import batches
from ldmprobe_core.interventions.measures.summarize import summarise_intervention
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.results import completed_interventions
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import EDIT
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.loading import parse_study


def test_edit_batch_repeats_a_batch_that_is_not_marked_done(run):
    spec = Intervention(samples=3, steps=2, layers=("*",), seed=4)
    create_intervention(run, spec)
    edit_batch(run.url, spec.name, 0, 0, 0, 0)
    group = f"interventions/{spec.name}"
    before = run.read(group, "image")
    run.write(group, {"done": np.zeros((1, 1, 1, 1), np.uint8), "image": np.zeros_like(before)})
    with pytest.raises(RuntimeError, match="not finished"):
        summarise_intervention(run, spec.name, 0.0)
    edit_batch(run.url, spec.name, 0, 0, 0, 0)
    np.testing.assert_array_equal(run.read(group, "image"), before)


@pytest.mark.parametrize(
    ("prop", "edited", "value", "words"),
    [
        ("depth", "depth", np.nan, r"labels\.depth: .*NaN"),
        ("foreground", "foreground", 255.0, r"labels\.foreground: .*from 0 to 1"),
        ("class", "foreground", 3.0, r"labels\.class: .*from 0 to 1"),
    ],
)
def test_edit_batch_refuses_unusable_labels_of_edited_images(
    run, monkeypatch, prop, edited, value, words
):
    """A labeler may fail on edited images alone, which are unlike those that it labeled so far."""

    @contextmanager
    def with_broken_labeler(run):
        with use_models(run) as (sampler, labelers):
            usable = labelers[prop]
            yield sampler, labelers | {prop: lambda images: np.full_like(usable(images), value)}

    monkeypatch.setattr(batches, "use_models", with_broken_labeler)
    spec = Intervention(prop=edited, samples=1, steps=1, layers=("mid_block*",), seed=21)
    name = create_intervention(run, spec)
    with pytest.raises(RunError, match=words):
        edit_batch(run.url, name, 0, 0, 0, 0)
    assert not run.progress_of(f"interventions/{name}").completed(EDIT).any()


def test_create_intervention_replaces_arrays_of_an_interrupted_attempt(run, monkeypatch):
    spec = Intervention(samples=2, steps=1, seed=11)
    original = Location.write_text

    def interrupted(self, name, text):
        if name.endswith("intervention.json"):
            raise OSError("interrupted")
        original(self, name, text)

    monkeypatch.setattr(Location, "write_text", interrupted)
    with pytest.raises(OSError, match="interrupted"):
        create_intervention(run, spec)
    monkeypatch.setattr(Location, "write_text", original)
    assert carry_out_intervention(run, spec).pairs == 2


def test_an_intervention_edits_as_many_samples_by_default_as_a_small_run_has(run):
    available = [s for s in run.samples[: run.n_stored] if s.split == "test"]
    assert len(available) < Intervention().samples
    name = create_intervention(run, Intervention(steps=1, seed=13))
    assert run.open(f"interventions/{name}").sizes["sample"] == len(available)
    assert create_intervention(run, Intervention(steps=1, seed=13)) == name
    with pytest.raises(UserError, match=r"samples: more than the run's \d test samples \(8\)"):
        create_intervention(run, Intervention(steps=1, seed=13, samples=8))


def test_create_intervention_keeps_results_that_lost_their_record(run):
    spec = Intervention(samples=2, steps=1, seed=12)
    carry_out_intervention(run, spec)
    image = run.read(f"interventions/{spec.name}", "image")
    file = f"edits/{spec.name}/intervention.json"
    record = run.location.read_text(file)
    run.location.remove(file)
    with pytest.raises(UserError, match=r"holds results, but .*intervention\.json is missing"):
        create_intervention(run, spec)
    run.location.write_text(file, record)  # Other tests edit the same run.
    np.testing.assert_array_equal(run.read(f"interventions/{spec.name}", "image"), image)


def test_create_intervention_names_a_target_file_by_its_contents(run, tmp_path):
    path = tmp_path / "t.npy"
    names = []
    for i in (0, 1):
        mask = np.zeros((16, 16), np.float32)
        mask[4 * i : 8 + 4 * i, 3:9] = 1
        np.save(path, mask)
        names.append(
            create_intervention(run, Intervention(samples=1, targets=(Target(file=str(path)),)))
        )
        target_map = run.read(f"interventions/{names[-1]}", "target_map")
        np.testing.assert_array_equal(target_map[0, 0], mask)
    assert names[0] != names[1]


def test_edit_batch_of_a_donor_aims_at_the_donors_label(run):
    spec = Intervention(samples=3, method="donor", steps=3, layers=("*",))
    summary = carry_out_intervention(run, spec)
    donors = plan_intervention(run, spec).donors
    target_map = run.read(f"interventions/{spec.name}", "target_map")[0]
    labels = run.read("labels", "foreground")[donors] > run.study.labels.threshold
    np.testing.assert_array_equal(target_map, labels)
    assert set(summary.effects) == {"edited"}
    assert summary.sites[0].reading is None


def test_edit_batch_makes_a_causal_map_at_a_dose(run):
    """Edits of one layer in one window equal a separate intervention there."""
    spec = Intervention(prop="depth", samples=2, windows=3, doses=(4.0,), controls=())
    summary = carry_out_intervention(run, spec)
    rows = ["latents", *run.layers]
    assert len(summary.sites) == len(rows) * 3
    alone = Intervention(
        prop="depth", samples=2, layers=(rows[1],), start=2, steps=1, doses=(1.0, 4.0), controls=()
    )
    carry_out_intervention(run, alone)
    expected = run.read(f"interventions/{alone.name}", "image", condition=0, site=0, dose=1)
    images = run.read(f"interventions/{spec.name}", "image", condition=0, site=4, dose=0)
    np.testing.assert_array_equal(images, expected)
    site = summary.sites[4]
    assert (site.layers, site.first, site.last, site.dose) == ([rows[1]], 2, 2, 4.0)


def test_edit_batch_gives_null_edits_the_size_of_the_edit_over_a_whole_generation(run):
    """Also after several layers and steps, where the activations of both generations differ."""
    spec = Intervention(samples=3, steps=3, controls=("orthogonal", "coherent", "permuted"), seed=5)
    carry_out_intervention(run, spec)
    group = f"interventions/{spec.name}"
    edited, *nulls = run.read(group, "size")
    assert (edited > 0).all()
    for null in nulls:
        np.testing.assert_allclose(null, edited, rtol=1e-6)


def test_find_corrupt_chunks_finds_a_lost_chunk_of_a_causal_map(run):
    spec = Intervention(samples=2, windows=3, controls=(), seed=21)
    carry_out_intervention(run, spec)
    chunk = f"interventions/{spec.name}/score/c/0/0/1/0/0/0"
    content = run.location.read_bytes(chunk)
    run.location.remove(chunk)
    group = f"interventions/{spec.name}"
    (damaged,) = find_corrupt_chunks(run, group)
    assert damaged.array == f"{group}/score"
    run.location.write_bytes(chunk, content)
    assert not list(find_corrupt_chunks(run, group))


@pytest.fixture(scope="module")
def descended(tiny_model, tmp_path_factory):
    """A run with probes fitted by descent; its tests add different interventions."""
    content = small_study("descent", tiny_model, 12).model_dump(mode="json", by_alias=True)
    content["probes"] = {"kinds": ["plain_ridge", "adam"]}
    return carry_out(parse_study(content), str(tmp_path_factory.mktemp("descended")))


@pytest.mark.parametrize("layers", [("*attn1",), ("latents",)])
def test_edit_batch_fits_probes_by_descent_while_images_are_generated(descended, layers):
    """The null edit of permuted labels, and edits of latents, fit probes in the hooks of a run."""
    run = descended
    spec = Intervention(
        samples=1, method="adam", kind="adam", iterations=2, steps=1, layers=layers,
        controls=("permuted",),
    )  # fmt: skip
    summary = carry_out_intervention(run, spec)
    assert summary.kind == "adam"
    assert set(summary.effects) == {"edited", "permuted"}
    assert summary.effects["permuted"].directions == 1
    assert effect_rows(summary)[-1]["image"] == "probe of other images' labels (1 permutation)"


def test_edit_batch_makes_a_causal_map_of_packed_latents(tmp_path):
    """Flux packs its latents into tokens; the map has a row for them as for other families."""
    folder = tiny_models.write("flux", tmp_path / "model")
    study = architecture_study(
        folder, "flux", prompts={"items": [f"a ball {letter}" for letter in "abcdefgh"]},
        capture={"layers": ["transformer_blocks.0.attn"]}, probes={"kinds": ["ridge"]},
        controls={"permuted_weights": False}, trajectory={"samples": 2, "training": 0},
    )  # fmt: skip
    run = carry_out(study, str(tmp_path / "store"))
    summary = carry_out_intervention(run, Intervention(samples=1, windows=1))
    assert [site.layers for site in summary.sites] == [["latents"], ["transformer_blocks.0.attn"]]
    assert all(site.reading > 0.5 and site.decodable.mean for site in summary.sites)


def test_damaged_record_of_an_edit_is_repaired_by_the_intervention_and_keeps_the_runs_summary(
    unedited_run, tmp_path
):
    run = Run(str(shutil.copytree(unedited_run.url, tmp_path / Path(unedited_run.url).name)))
    spec = Intervention(samples=2, steps=1, layers=("mid_block*",), seed=31)
    summary = carry_out_intervention(run, spec)
    before = run.read(f"interventions/{spec.name}", "image")
    key = f"checksums/interventions/{spec.name}/done/0-0-0-0.json"
    run.location.write_text(key, "{")
    damage = list(find_corrupt_chunks(run))
    assert [chunk.key for chunk in damage] == [key]
    repair = clear_progress(run, damage)
    assert (repair.of_run, repair.interventions, repair.beyond_repair) == (0, [spec.name], [])
    assert run.location.has("summary.json")
    assert spec.name not in completed_interventions(run)
    assert carry_out_intervention(run, spec).sites == summary.sites
    np.testing.assert_array_equal(run.read(f"interventions/{spec.name}", "image"), before)
    assert list(find_corrupt_chunks(run)) == []
