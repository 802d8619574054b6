"""Building a report: its page and its files."""

import json
import re
import shutil
from importlib import resources
from pathlib import Path

import jinja2
import pytest
from run_helpers import carry_out

from ldmprobe_core.analysis.report import build
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.lease import holder_of
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study


@pytest.mark.parametrize(("level", "shown"), [(0.995, "99.5"), (0.95, "95"), (0.55, "55")])
def test_page_shows_the_level_of_intervals_unrounded(level, shown):
    page = (resources.files(build.__package__) / "page.html").read_text("utf-8")
    found = re.findall(r"\{\{[^{}]*bootstrap\.level[^{}]*\}\}%", page)
    study = parse_study({"bootstrap": {"level": level}})
    rendered = [jinja2.Environment().from_string(one).render(study=study) for one in found]
    assert rendered == [f"{shown}%"] * 2


def test_build_report_escapes_prompts_and_writes_figures(tiny_study, tmp_path):
    evil = [f"<script>alert({i})</script> ../../etc" for i in range(8)]
    study = tiny_study(
        prompts={"items": evil, "samples": 8},
        controls={"shuffled_labels": False, "permuted_weights": False},
    )
    run = carry_out(study, str(tmp_path))
    build_report(run, {})
    page = run.location.read_text("report/index.html")
    assert "<script>alert(" not in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    # The test prompts are too few for intervals, and there is no permuted denoiser to compare with.
    assert "too few for intervals." in page
    assert "bootstrap interval" not in page
    assert "% interval" not in page
    assert "could explain its score" not in page
    assert "no interval to compare with position" in page
    assert "not clearly above" not in page.partition('<h2 id="emergence">')[0]
    assert "The differences are taken sample by sample, over the test samples" in page
    assert "between test samples and 20 other divisions" in page
    assert "final image&#39;s top class leads in the decoded latents of the last step in" in page
    record = json.loads(run.location.read_text("summary.json"))
    (note,) = record["notes"]
    assert note.startswith("8 of 8 prompts are longer than the model reads")
    assert "8 of 8 prompts are longer than the model reads" in page
    assert record["properties"]["depth"]["controls"]["permuted_weights"] is None
    for name in ("foreground-heatmap.svg", "depth-curves.svg"):
        assert (Path(run.url) / "report" / name).stat().st_size > 5_000


def test_rebuild_report_holds_the_lease_of_the_run(finished_run, tmp_path, monkeypatch):
    """So two of them never write summary.json at once, nor one while units are marked."""
    run = Run(str(shutil.copytree(finished_run.url, tmp_path / "run")))
    holders = []

    def written(run, *arguments, **options):
        holders.append(holder_of(run.url))
        raise RuntimeError("stopped")

    monkeypatch.setattr(build, "build_report", written)
    with pytest.raises(RuntimeError, match="stopped"):
        build.rebuild_report(run)
    assert [holder.description for holder in holders] == ["ldmprobe report"]
    assert holder_of(run.url) is None
    run.location.remove("summary.json")
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        build.rebuild_report(run)
