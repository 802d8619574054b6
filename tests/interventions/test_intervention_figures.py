"""Interventions in the report of a run."""

import html
import shutil
from itertools import pairwise

import imageio_ffmpeg
import pytest
import xarray as xr
from intervention_helpers import carry_out_intervention

from ldmprobe_core.analysis.report import intervention_figures
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.intervention_text import (
    effect_rows,
    intervention_title,
    map_sentence,
    site_layer,
)
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.results import read_intervention_summary
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.storage.run import Run

SHIFTS = Intervention(samples=4, targets=(Target(dx=0.25), Target(dx=-0.25)), steps=2)
CAUSAL = Intervention(samples=2, windows=3, controls=("orthogonal",), seed=5)
DOSES = Intervention(samples=2, doses=(1.0, 8.0), steps=1, controls=("orthogonal",))


@pytest.fixture(scope="module")
def reported(unedited_run, tmp_path_factory):
    """A run with three interventions and its report, drawn where there is no ffmpeg."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(unedited_run.url, folder / "run")
    run = Run(str(folder / "run"))
    for spec in (SHIFTS, CAUSAL, DOSES):
        carry_out_intervention(run, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder / "none"))
        build_report(run, {"generate": 1.0})
    return run


def test_build_report_shows_interventions_and_xarray_opens_them(reported):
    run, spec = reported, SHIFTS
    page = run.location.read_text("report/index.html")
    assert '<h2 id="interventions">Interventions</h2>' in page
    assert "orthogonal to what probes read" in page
    about = page.split('<h2 id="interventions">')[1].split("</p>")[0]
    assert "without this null edit, it is its score less that of the unedited images" in about
    for suffix in (".svg", "-strip.svg", ".gif"):
        assert f"{spec.name}{suffix}" in page
    assert run.location.read_bytes(f"report/{spec.name}.gif")[:6] == b"GIF89a"
    tree = xr.open_datatree(run.url, engine="zarr")
    assert tree[f"interventions/{spec.name}"].image.dims[0] == "condition"


def test_build_report_shows_a_causal_map_and_a_dose_response(reported):
    page = reported.location.read_text("report/index.html")
    summary = read_intervention_summary(reported, CAUSAL.name)
    assert f"{CAUSAL.name}-map.svg" in page
    assert f"{DOSES.name}-doses.svg" in page
    assert html.escape(map_sentence(summary)) in page
    # Two samples give no intervals.
    layers = [s for s in summary.sites if s.layers != ["latents"]]
    assert map_sentence(summary) == (
        f"Whether the edit has an effect is not determined in any of {len(layers)} cells: no "
        "intervals, as too few distinct prompts have a score."
    )
    assert page.count(html.escape(map_sentence(summary))) == 1
    rows = effect_rows(summary)
    assert next(row["layer"] for row in rows) == "denoiser's input"
    assert set(rows[0]) == {"layer", "steps 1-1", "steps 2-2", "steps 3-3"}


def with_effects(summary, used, decodable, without=()):
    """Summary whose sites have the given effects and decodable scores, with intervals of 0.02.

    The effects of the sites with the numbers `without` have no interval.
    """
    sites = []
    for i, (site, effect, score) in enumerate(zip(summary.sites, used, decodable, strict=True)):
        gap, read = (Interval(mean=v, low=v - 0.01, high=v + 0.01) for v in (effect, score))
        gap = Interval(mean=effect, low=None, high=None) if i in without else gap
        null = site.effects["orthogonal"].model_copy(update={"edit_less_this": gap})
        effects = {**site.effects, "orthogonal": null}
        sites.append(site.model_copy(update={"effects": effects, "decodable": read}))
    return summary.model_copy(update={"sites": sites})


def test_map_sentence_and_figures_of_an_erasure_say_that_the_score_falls(run):
    layers = tuple(name for name in run.layers if name.startswith("mid_block"))
    spec = Intervention(method="leace", samples=2, windows=3, layers=layers)
    summary = with_effects(carry_out_intervention(run, spec), (0.2, -0.3, -0.1), (0.5, 0.4, 0.6))
    sentence = map_sentence(summary)
    assert sentence.startswith(
        "In 2 of 3 cells the erasure lowers the Dice with own label below that of the null edit, "
    )
    assert "clear of zero, and in 1 it raises it (intervals are not corrected for the" in sentence
    assert "; of the cells clear of zero, most in mid_block" in sentence
    assert "steps 2 to 2: -0.30 [-0.31, -0.29]" in sentence
    assert "the erasure there has the effect" in sentence
    partly = map_sentence(with_effects(summary, (0.2, -0.3, -0.1), (0.5, 0.4, 0.6), without=(2,)))
    assert partly.startswith("In 1 of 2 cells the erasure lowers the Dice")
    assert "; not determined in 1 of 3 cells (no intervals, as too few distinct" in partly
    assert f"Probes read foreground best in {site_layer(summary.sites[0])}, steps 1 to 1" in partly
    figure = intervention_figures.causal_map(summary)
    frames = [patch.get_bbox() for axes in figure.axes for patch in axes.patches]
    # All three windows of the only layer have intervals clear of zero.
    assert [round(frame.x0 + frame.x1) for frame in frames] == [0, 2, 4]
    assert all(one.x1 < other.x0 for one, other in pairwise(frames))
    titles = [axes.get_title() for axes in figure.axes]
    assert "used: Dice with own label, less null edit\n(a use lowers it)" in titles
    assert "2 samples" in intervention_title(summary)


def test_map_sentence_of_the_denoisers_input_alone_counts_no_cells(run):
    spec = Intervention(samples=1, windows=1, layers=("latents",), controls=())
    summary = carry_out_intervention(run, spec)
    assert map_sentence(summary) == "Only the denoiser's input is edited, and no layer."


def test_before_and_after_of_an_erasure_shows_the_site_where_the_score_falls_most(run):
    spec = Intervention(method="leace", samples=2, windows=3, controls=(), seed=41)
    carry_out_intervention(run, spec)
    group = f"interventions/{spec.name}"
    score, unedited = run.read(group, "score"), run.read(group, "unedited")
    score[0, 0] = unedited[0][None, None] + 0.1
    score[0, 0, 2] -= 0.3
    score[0, 0, 4] += 0.5
    run.write(group, {"score": score})
    figure = intervention_figures.before_and_after(run, spec.name)
    assert figure.get_suptitle() == str(plan_intervention(run, spec).sites[2])
    titles = [text.get_text() for text in figure.axes[0].texts[:4]]
    assert titles == ["unedited", "own label", "erased", "its map"]


def test_effect_rows_have_the_agreement_with_the_own_label_and_the_vanished_masks(run):
    rows = effect_rows(carry_out_intervention(run, Intervention(samples=2, steps=1, seed=42)))
    assert all({"with own label", "mask vanished"} <= set(row) for row in rows)
    assert rows[-1]["image"] == "own label as target"
    assert rows[-2]["image"].startswith("probe of other images' labels (")
    erased = carry_out_intervention(run, Intervention(samples=2, steps=1, method="leace"))
    assert "Dice with own label" in effect_rows(erased)[0]
    assert "with own label" not in effect_rows(erased)[0]


def test_film_is_written_only_if_ffmpeg_exists(reported):
    film = intervention_figures.film(reported, SHIFTS.name, imageio_ffmpeg.get_ffmpeg_exe())
    assert film[4:8] == b"ftyp"
    assert len(film) > 500
    page = reported.location.read_text("report/index.html")
    assert f"{SHIFTS.name}.gif" in page
    assert f"{SHIFTS.name}.mp4" not in page
