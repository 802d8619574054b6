"""Table of category hold-out and description length."""

from types import SimpleNamespace

from summaries import interval

from ldmprobe_core.analysis.report.generalization_figures import generalization_rows


def test_the_heading_of_bits_names_the_unit_of_masks():
    """Of a mask the code length is a mean over the pixels of a token's block."""
    length = SimpleNamespace(step=3, saved=interval(0.25), compression=1.5)
    analyses = SimpleNamespace(holdout=None, code_length=[length])
    made = SimpleNamespace(properties={"foreground": SimpleNamespace(analyses=analyses)})
    (row,) = generalization_rows(made)
    assert row["bits saved per token (masks: per pixel)"] == "0.25 [0.20, 0.30]"
    assert "bits saved per token" not in row
