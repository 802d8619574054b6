"""Interventions in the report of a run."""

import html

import imageio_ffmpeg
import xarray as xr
from intervention_helpers import carry_out_intervention

from ldmprobe_core.analysis.report import intervention_figures
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.intervention_text import effect_rows, map_sentence
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import Target


def test_build_report_shows_interventions_and_xarray_opens_them(run):
    spec = Intervention(samples=4, targets=(Target(dx=0.25), Target(dx=-0.25)), steps=2)
    carry_out_intervention(run, spec)
    build_report(run, {"generate": 1.0})
    page = run.location.read_text("report/index.html")
    assert "<h2>Interventions</h2>" in page
    assert "orthogonal to what probes read" in page
    for suffix in (".png", "-strip.png", ".gif"):
        assert f"{spec.name}{suffix}" in page
    assert run.location.read_bytes(f"report/{spec.name}.gif")[:6] == b"GIF89a"
    tree = xr.open_datatree(run.url, engine="zarr")
    assert tree[f"interventions/{spec.name}"].image.dims[0] == "condition"


def test_build_report_shows_a_causal_map_and_a_dose_response(run):
    causal = Intervention(samples=2, windows=3, controls=("orthogonal",), seed=5)
    doses = Intervention(samples=2, doses=(1.0, 8.0), steps=1, controls=("orthogonal",))
    summary = carry_out_intervention(run, causal)
    carry_out_intervention(run, doses)
    build_report(run, {"generate": 1.0})
    page = run.location.read_text("report/index.html")
    assert f"{causal.name}-map.png" in page
    assert f"{doses.name}-doses.png" in page
    assert html.escape(map_sentence(summary)) in page
    layers = [s for s in summary.sites if s.layers != ["latents"]]
    clear = [s for s in layers if (s.effects["orthogonal"].edit_less_this.low or 0) > 0]
    assert f"In {len(clear)} of {len(layers)} cells" in map_sentence(summary)
    rows = effect_rows(summary)
    assert next(row["layer"] for row in rows) == "denoiser's input"
    assert set(rows[0]) == {"layer", "steps 1-1", "steps 2-2", "steps 3-3"}


def test_film_is_written_only_if_ffmpeg_exists(run, monkeypatch, tmp_path):
    spec = Intervention(samples=2, targets=(Target(dx=0.25), Target(dx=-0.25)), steps=1)
    carry_out_intervention(run, spec)
    film = intervention_figures.film(run, spec.name, imageio_ffmpeg.get_ffmpeg_exe())
    assert film[4:8] == b"ftyp"
    assert len(film) > 500
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    build_report(run, {"generate": 1.0})
    assert f"{spec.name}.mp4" not in run.location.read_text("report/index.html")
