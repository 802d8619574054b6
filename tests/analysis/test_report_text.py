"""Sentences and rows of a summary: cleared and missed controls, absent and undefined values."""

import subprocess
import sys

from ldmprobe_core.analysis.records import (
    CellRecord,
    ControlRecord,
    ControlsRecord,
    EmergenceRecord,
    LeadRecord,
    PropertyRecord,
    Summary,
    UndefinedRecord,
)
from ldmprobe_core.analysis.report.text import best_rows, headline, number, step
from ldmprobe_core.probing.bootstrap import Interval
from ldmprobe_core.probing.emergence import Emergence, Lead, Leads, Step


def interval(mean, half=0.05):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def control(mean):
    return ControlRecord(**interval(mean))


def summary(position, shuffled, permuted, **more):
    third = Step(step=3, low=2, high=4)
    nowhere = Step(step=None, low=None, high=None)
    no_lead = Lead(steps=None, low=None, high=None)
    no_leads = Leads(onset=no_lead, settled=no_lead)
    never = Emergence(onset=nowhere, settled=nowhere)
    best = CellRecord(
        step=9, layer="a.transformer_blocks.0.attn1", kind="ridge", metric="spearman",
        **interval(0.6),
    )  # fmt: skip
    result = PropertyRecord(
        best=best,
        last=best,
        emergence=EmergenceRecord(
            probe=Emergence(onset=third, settled=third),
            decoded=never,
            clean=never,
            lead=LeadRecord(decoded=no_leads, clean=no_leads),
        ),
        controls=ControlsRecord(
            position=control(position),
            shuffled_labels=control(shuffled),
            permuted_weights=permuted and control(permuted),
            **{name: control(mean) for name, mean in more.items()},
        ),
        undefined=UndefinedRecord(best=0, any=0),
    )
    return Summary(
        study="s", study_hash="h", model_fingerprint="f", samples={"test": 5}, steps=15, layers=1,
        properties={"depth": result}, classes=None, nonfinite=0, seconds={}, bytes=1, versions={},
    )  # fmt: skip


def test_headline_with_all_controls_cleared():
    (line,) = headline(summary(0.3, 0.2, 0.1))
    assert "is above position alone (0.30 [0.25, 0.35]), shuffled labels" in line
    assert "not clearly" not in line
    assert "step 3 [2, 4]" in line


def test_headline_names_a_control_that_is_not_cleared():
    (line,) = headline(summary(0.3, 0.55, 0.1))
    assert "but not clearly above shuffled labels (0.55" in line
    (line,) = headline(summary(0.7, 0.55, 0.6))
    assert "is not clearly above position alone" in line


def test_headline_asks_nothing_of_a_nonlinear_probe():
    (line,) = headline(summary(0.3, 0.2, 0.1, mlp=0.9))
    assert "not clearly" not in line
    assert "two-layer" not in line


def test_best_rows_with_absent_and_undefined_values():
    (row,) = best_rows(summary(0.3, 0.2, None))
    assert row["permuted"] == "–"
    assert row["image onset"] == "–"
    assert row["at"] == "step 9, a.attn1, ridge"
    assert number(Interval(mean=None, low=None, high=None)) == "–"
    assert number(Interval(mean=0.5, low=None, high=None)) == "0.50"
    assert number(None) == "–"
    assert step(Step(step=3, low=1, high=4)) == "3 [1, 4]"


def test_best_rows_list_optional_controls_last():
    (row,) = best_rows(summary(0.3, 0.2, 0.1, mlp=0.9))
    keys = list(row)
    start = keys.index("position")
    assert keys[start : start + 5] == ["position", "shuffled", "permuted", "latents", "mlp"]
    assert row["mlp"] == "0.90 [0.85, 0.95]"


def test_text_imports_neither_torch_nor_plotting():
    heavy = "{'torch', 'diffusers', 'plotly', 'matplotlib', 'transformers'}"
    code = (
        "import sys, ldmprobe_core.analysis.report.text; "
        f"loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_headline_of_one_test_prompt_compares_with_nothing():
    whole = summary(0.3, 0.2, 0.1)
    result = whole.properties["depth"]
    for cell in (result.best, result.last):
        cell.low = cell.high = None
    whole.samples["test_groups"] = 1
    (line,) = headline(whole)
    assert line.endswith("the best cell, 0.60, has no interval (1 test prompt) to compare by.")
    assert best_rows(whole)[0]["above position"] == "no interval"
