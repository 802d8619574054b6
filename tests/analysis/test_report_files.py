"""Files of a report that others build on."""

import csv
import io

import numpy as np
import pytest
from run_helpers import carry_out

from ldmprobe_core.analysis.exports import COLUMNS
from ldmprobe_core.analysis.report.build import build_report


@pytest.mark.slow
def test_report_has_the_scores_of_every_cell_and_sources(tiny_study, tmp_path):
    run = carry_out(tiny_study(), str(tmp_path))
    summary = build_report(run, {})
    rows = list(csv.DictReader(io.StringIO(run.location.read_text("report/scores.csv"))))
    assert tuple(rows[0]) == COLUMNS
    for prop, result in summary.properties.items():
        best = result.best
        [row] = [
            row
            for row in rows
            if (row["property"], row["condition"]) == (prop, "probe")
            and (row["metric"], row["kind"]) == (best.metric, best.kind)
            and (row["step"], row["layer"]) == (str(best.step), best.layer)
        ]
        assert float(row["mean"]) == pytest.approx(best.score.mean, abs=1e-6)
        scores = run.open(f"scores/{prop}").score
        of_test = scores.sel(sample=scores.split.values == "test")
        defined = int(np.isfinite(of_test.sel(condition="probe")).any("sample").sum())
        listed = [r for r in rows if (r["property"], r["condition"]) == (prop, "probe")]
        assert len(listed) == defined
    sources = run.location.read_text("report/cite.bib")
    assert summary.study_hash in sources
    assert "2306.05720" in sources
