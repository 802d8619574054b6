"""Sentences and cells on controls that a probe exceeds, does not, or cannot be compared with."""

from io import StringIO

import pytest
from markupsafe import escape
from rich.console import Console
from summaries import interval, overview, summary

from flows.commands.tables import print_summary
from ldmprobe_core.analysis.controls.wording import difference_sentences
from ldmprobe_core.analysis.exports import latex_table
from ldmprobe_core.analysis.index.build import RunEntry, index_page
from ldmprobe_core.analysis.records import StepRecord
from ldmprobe_core.analysis.report.text import best_rows, headline, warning_lines
from ldmprobe_core.probing.inference.bootstrap import Interval


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
    ("shuffled", "clause", "fact", "cell"),
    [
        (
            0.2,
            "permuted weights (by 0.50 [0.45, 0.55]), and has no interval to compare it with the "
            "predicted clean image's pixels (difference 0.20 on 4 test images).",
            "; +0.30 [0.25, 0.35] above position alone, the least margin over 3 controls with an "
            "interval, all exceeded; no interval to compare it with the predicted clean image's "
            "pixels; step 3",
            "no interval: the predicted clean image's pixels",
        ),
        (
            0.58,
            "but not clearly above shuffled labels (by 0.02 [-0.03, 0.07]), and has no interval "
            "to compare it with the predicted clean image's pixels (difference 0.20 on 4 test "
            "images).",
            "; not clearly above shuffled labels; no interval to compare it with the predicted "
            "clean image's pixels; step 3",
            "shuffled labels; no interval: the predicted clean image's pixels",
        ),
    ],
)
def test_a_control_without_an_interval_is_not_called_compared(shuffled, clause, fact, cell):
    """A probe of 0.6 and clean pixels of 0.4 on four test images, too few for an interval."""
    made = without_interval(summary(0.3, shuffled, 0.1, clean_pixels=0.4), "clean_pixels")
    (line,) = headline(made)
    assert clause in line.partition(" Probes of")[0]
    assert fact in overview(made)
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
    (line,) = headline(made)
    assert overview(made).startswith(
        "0.60 [0.55, 0.65] rank correlation at step 9, a.attn1; "
        "no interval to compare it with any control; step 3"
    )
    assert "[0.55, 0.65], has no interval to compare it with position alone (difference" in line
    best.low = best.high = None
    table = latex_table(made)
    for text in (page, table, *headline(made), overview(made)):
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


def test_differences_that_are_corrected_or_refitted_are_named():
    made = summary(0.3, 0.2, 0.1)
    plain = (
        "The differences are taken sample by sample, over the test samples in which both scores "
        "are defined."
    )
    assert difference_sentences(made, "activations") == plain
    made = summary(0.3, 0.2, 0.1, latents=0.2, clean_pixels=0.2, mlp=0.9)
    controls = made.properties["depth"].controls
    controls.clean_pixels.samples = {"train": 32, "test": 64}
    controls.permuted_weights.samples = {"train": 60, "test": 64}
    assert difference_sentences(made, "activations") == (
        f"{plain} Those to the latents alone and the predicted clean image's pixels are corrected "
        "for the number of training images, if these have at least 10 prompts (delete-half "
        "jackknife). Permuted weights and the predicted clean image's pixels: computed on fewer "
        "samples; the probe is fitted again to the training samples of the control. Such a "
        "difference need not equal that of the two scores above."
    )
    controls.clean_pixels = None
    assert difference_sentences(made, "statistics") == (
        f"{plain} Permuted weights: computed on fewer samples; the probe has all training samples "
        "nevertheless. Such a difference need not equal that of the two scores above."
    )


def test_a_fixed_cut_of_the_best_probe_is_named_with_the_controls_that_share_it():
    """Two of the controls are of the kind `plain_logistic` too, latents are not."""
    made = summary(0.3, 0.2, 0.1, latents=0.2)
    result = made.properties["depth"]
    made.properties = {"foreground": result}
    result.best.other = {"auroc": interval(0.9)}
    assert "cut" not in headline(made)[0]
    result.best.kind = "plain_logistic"
    for record in (result.controls.shuffled_labels, result.controls.permuted_weights):
        record.own_best.kind = "plain_logistic"
    (line,) = headline(made)
    assert (
        " Its probes have the fixed cut of the published protocol, and so have shuffled labels and "
        "permuted weights: their masks may be empty for the cut alone, so that the difference to "
        "them is no evidence. AUROC, which needs no cut, is 0.90 [0.85, 0.95]. Probes of a.attn1 "
    ) in line
    made.properties = {"depth": result}
    assert "cut" not in headline(made)[0]


def test_tables_and_the_index_tell_a_control_that_is_better_from_one_that_is_not_cleared():
    """Of a probe of 0.6, position scores 0.7, and shuffled labels 0.58."""
    made = summary(0.7, 0.58, 0.1)
    cell = "shuffled labels; below: position alone"
    assert f" & {cell} & " in latex_table(made)
    page = index_page("runs", [RunEntry("r", "finished", summary=made)])
    assert f'<td data-run="0">{cell}</td>' in page
    assert "; below a control" in page
    (row,) = best_rows(made)
    assert row["above position"] == "no, below"


def test_sentences_say_that_a_control_is_clearly_better():
    """Of a probe of 0.6, position scores 0.7, and the latents 0.9."""
    made = summary(0.7, 0.2, 0.58, latents=0.9)
    (line,) = headline(made)
    assert (
        "is above shuffled labels (by 0.40 [0.35, 0.45]), but not clearly above permuted weights "
        "(by 0.02 [-0.03, 0.07]), and below position alone (difference -0.10 [-0.15, -0.05]), the "
        "latents alone (difference -0.30 [-0.35, -0.25])."
    ) in line
    assert (
        "; not clearly above permuted weights, and below position alone (difference -0.10 "
        "[-0.15, -0.05]) and the latents alone (difference -0.30 [-0.35, -0.25]); step 3"
    ) in overview(made)
    assert "; below position alone (difference -0.10 [-0.15, -0.05]); step 3" in overview(
        summary(0.7, 0.2, 0.1)
    )
    (line,) = headline(summary(0.7, 0.2, 0.1))
    assert "but below position alone (difference -0.10" in line


def test_sentences_name_the_steps_at_which_an_input_does_as_well():
    """The onset's interval is steps 2 to 4; steps 1 and 5 do not count."""
    made = summary(0.3, 0.2, 0.1, latents=0.2, clean_pixels=0.2)
    lows = {"latents": [-1, -1, 0, -1, -1], "clean_pixels": [-1, 0.1, -0.1, 0.1, -1]}
    score = Interval(mean=0.5, low=0.4, high=0.6)
    made.properties["depth"].steps = [
        StepRecord(
            step=i + 1, score=score, metric="spearman_partial", value=score,
            less_inputs={n: Interval(mean=low[i] + 0.1, low=low[i], high=low[i] + 0.2)
                         for n, low in lows.items()},
        )
        for i in range(5)
    ]  # fmt: skip
    clause = (
        " At steps 2 to 4, probes are not clearly above the latents alone (apart from position). "
        "At step 3, probes are not clearly above the predicted clean image's pixels (apart from "
        "position)."
    )
    for text in (*headline(made), overview(made)):
        assert clause in text
    # Where no partial score is computed, the scores that are compared contain position.
    for metric, title in (("spearman", "rank correlation"), ("dice", "Dice"), ("own", "own")):
        for record in made.properties["depth"].steps:
            record.metric = metric
        (text,) = headline(made)
        assert f"above the latents alone (in {title})." in text
        assert "apart from position" not in text
    for record in made.properties["depth"].steps:
        record.metric = "auroc"
        record.less_inputs["clean_pixels"] = record.less_inputs["latents"]
    assert (
        "At steps 2 to 4, probes are not clearly above the latents alone and the predicted clean "
        "image's pixels (in AUROC)."
    ) in headline(made)[0]
    for record in made.properties["depth"].steps:
        record.less_inputs = {"latents": score}
    assert "probes are not clearly" not in headline(made)[0]


def test_sentences_say_how_many_masks_are_empty():
    """Of five test images."""
    made = summary(0.3, 0.2, 0.1)
    made.properties = {"foreground": made.properties["depth"]}
    undefined = made.properties["foreground"].undefined
    undefined.truth_empty, undefined.both_empty = 4, 3
    for text in (*headline(made), f"{overview(made)} "):
        assert " 4 of 5 label masks are empty; 3 of them score 1 as empty too. " in text
    undefined.both_empty = 1
    assert " 4 of 5 label masks are empty; 1 of them scores 1 as empty too. " in headline(made)[0]
    undefined.truth_empty = 1
    assert (
        " 1 of 5 label masks is empty; it scores 1 as its prediction is empty too. "
        in headline(made)[0]
    )
    assert warning_lines(made, "activations") == [
        "foreground: 1 label mask is empty, predicted empty too and scored 1."
    ]
    undefined.both_empty, undefined.best, undefined.any = 0, 1, 1
    assert " 1 of 5 label masks is empty; its prediction is not. " in headline(made)[0]
    assert warning_lines(made, "activations") == [
        "foreground: 1 of 5 test scores of the best cell is undefined and excluded from its mean "
        "(1 over all cells); 1 label mask is empty, not predicted empty too."
    ]
    made.samples["test"] = 1
    assert headline(made)[0].startswith("Foreground: the label mask of the only test image is")
    made.samples["test"], undefined.best, undefined.any = 5, 0, 0
    undefined.truth_empty = undefined.both_empty = 5
    clause = "all 5 label masks of the test images are empty, so nothing is measured."
    assert headline(made) == [f"Foreground: {clause}"]
    assert overview(made) == f"not measured {clause}"
    output = StringIO()
    print_summary(made, "runs/x", Console(file=output, markup=False))
    assert "Best cell" not in output.getvalue()


def test_headline_asks_nothing_of_a_nonlinear_probe():
    (line,) = headline(summary(0.3, 0.2, 0.1, mlp=0.9))
    assert "not clearly" not in line
    assert "two-layer" not in line


def test_headline_says_nothing_of_a_labeler_that_does_not_exist():
    made = summary(0.1, 0.2, 0.05)
    made.properties["depth"].emergence.decoded.undefined_because = "no_labeler"
    (line,) = headline(made)
    assert line.endswith(
        "keep half of their gain from step 3 [2, 4] (by then in 90% of the resamples)."
    )
