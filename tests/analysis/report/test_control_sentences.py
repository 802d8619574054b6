"""Sentences and cells on controls that a probe exceeds, does not, or cannot be compared with."""

import pytest
from markupsafe import escape
from summaries import summary

from ldmprobe_core.analysis.exports import latex_table
from ldmprobe_core.analysis.index.build import RunEntry, index_page
from ldmprobe_core.analysis.report.overview import overview_sentences
from ldmprobe_core.analysis.report.text import best_rows, headline


def without_interval(made, *names):
    """Take the intervals of the differences to the named controls away, as of few prompts."""
    result = made.properties["depth"]
    for name in names:
        record = result.controls.by_name()[name]
        record.difference.low = record.difference.high = record.p = None
        record.samples = {"test": 4}
    result.not_beyond = result.controls.not_exceeded()
    return made


@pytest.mark.parametrize(
    ("shuffled", "clause", "overview", "cell"),
    [
        (
            0.2,
            "permuted weights (by 0.50 [0.45, 0.55]), and has no interval to compare it with the "
            "predicted clean image's pixels (difference 0.20 on 4 test images).",
            "above every other control; the closest, position alone, is 0.30 [0.25, 0.35] lower; "
            "no interval to compare it with the predicted clean image's pixels.",
            "no interval: the predicted clean image's pixels",
        ),
        (
            0.58,
            "but not clearly above shuffled labels (by 0.02 [-0.03, 0.07]), and has no interval "
            "to compare it with the predicted clean image's pixels (difference 0.20 on 4 test "
            "images).",
            "not clearly above shuffled labels; no interval to compare it with the predicted clean "
            "image's pixels.",
            "shuffled labels; no interval: the predicted clean image's pixels",
        ),
    ],
)
def test_a_control_without_an_interval_is_not_called_compared(shuffled, clause, overview, cell):
    """A probe of 0.6 and clean pixels of 0.4 on four test images, too few for an interval."""
    made = without_interval(summary(0.3, shuffled, 0.1, clean_pixels=0.4), "clean_pixels")
    (line,) = headline(made)
    assert clause in line.partition(" Probes of")[0]
    (line,) = overview_sentences(made)
    assert overview in line
    assert f" & {cell} & " in latex_table(made)
    page = index_page("runs", [RunEntry("r", "finished", summary=made)])
    assert f'<td data-run="0">{escape(cell)}</td>' in page
    shortfall = "clearly above" if "shuffled" in cell else "compared with"
    assert f"; not {shortfall} every control" in page


def test_without_any_interval_no_control_is_called_not_exceeded():
    names = "position", "shuffled_labels", "permuted_weights"
    made = without_interval(summary(0.3, 0.2, 0.1), *names)
    best = made.properties["depth"].best.score
    page = index_page("runs", [RunEntry("r", "finished", summary=made)])
    (overview,), (line,) = overview_sentences(made), headline(made)
    assert overview.startswith(
        "Depth: rank correlation 0.60 [0.55, 0.65] at step 9, a.attn1, without an interval to "
        "compare it with any control."
    )
    assert "[0.55, 0.65], has no interval to compare it with position alone (difference" in line
    best.low = best.high = None
    table = latex_table(made)
    for text in (page, table, *headline(made), *overview_sentences(made)):
        assert "no interval" in text or "too few test prompts" in text
        assert "not clearly" not in text.replace('"row">not clearly above<', "")
    assert " & no interval & " in table
    assert best_rows(made)[0]["above position"] == "no interval"


def test_a_position_baseline_that_is_rarely_defined_is_not_compared():
    """The probe has an interval, and position too few defined scores for one of the difference."""
    (row,) = best_rows(without_interval(summary(0.3, 0.2, 0.1), "position"))
    assert row["above position"] == "no interval"
    (row,) = best_rows(summary(0.58, 0.2, 0.1))
    assert row["above position"] == "not clearly"
