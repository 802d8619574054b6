"""Sentences and rows of a summary: cleared and missed controls, absent and undefined values."""

import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console
from summaries import THIRD, WIDE, control, curve, overview, summary

from flows.commands.tables import print_summary
from ldmprobe_core.analysis.curves import RIVALS
from ldmprobe_core.analysis.records import (
    LeadRecord,
    LeadsRecord,
    NonfiniteRecord,
    UndefinedRecord,
)
from ldmprobe_core.analysis.report.text import (
    best_rows,
    headline,
    lead,
    number,
    property_title,
    spread_sentence,
    step,
    warning_lines,
)
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.probing.inference.emergence import Crossing, Lead

RANGE = " (an interval, too wide for one number)"


def test_headline_with_all_controls_cleared():
    (line,) = headline(summary(0.3, 0.2, 0.1))
    assert "is above position alone (by 0.30 [0.25, 0.35]), shuffled labels" in line
    assert "not clearly" not in line
    assert "Probes of a.attn1 keep half of their gain from step 3 [2, 4]" in line


def test_headline_tells_how_many_resplits_and_resamples_agree():
    made = summary(0.3, 0.2, 0.1)
    layer = made.properties["depth"].layer
    layer.resplits = {layer.name: 14, "b.attn1": 6}
    layer.tied = [layer.name, "b.attn1"]
    (line,) = headline(made)
    assert (
        "Probes of a.attn1 (of 2 layers within one standard error, the one that 14 of 20 re-splits "
        "choose) keep half"
    ) in line
    assert "from step 3 [2, 4] (by then in 90% of the resamples)" in line


def test_headline_is_silent_on_re_splits_that_have_one_layer_to_choose():
    made = summary(0.3, 0.2, 0.1)
    layer = made.properties["depth"].layer
    layer.resplits = {layer.name: 20}
    (line,) = headline(made)
    assert "re-splits" not in line
    assert " Probes of a.attn1 keep half of their gain" in line


def test_intervals_without_re_splits_have_the_reason():
    made = summary(0.3, 0.2, 0.1)
    alone = "Intervals include the spread between test samples only, because the "
    assert spread_sentence(made, "statistics").startswith(f"{alone}activations of training")
    assert spread_sentence(made, "activations").startswith(f"{alone}training samples are of a sing")
    made.properties["depth"].layer.resplits = {"a": 14, "b": 6}
    assert "between test samples and 20 other divisions" in spread_sentence(made, "activations")


def test_headline_names_a_control_that_is_not_cleared():
    (line,) = headline(summary(0.3, 0.56, 0.1))
    assert "but not clearly above shuffled labels (by 0.04 [-0.01, 0.09])" in line
    (line,) = headline(summary(0.62, 0.55, 0.6))
    assert "is not clearly above position alone" in line


def test_headline_names_a_control_with_a_large_p_value():
    made = summary(0.3, 0.2, 0.1)
    result = made.properties["depth"]
    result.controls.shuffled_labels.p = 1 / 19
    result.not_beyond = result.controls.not_exceeded()
    assert result.not_beyond == ["shuffled_labels"]
    clause = "but not clearly above shuffled labels (by 0.40 [0.35, 0.45], p = 0.053)"
    assert clause in headline(made)[0]
    assert headline(made)[0].count("p = ") == 1


def test_best_rows_with_absent_and_undefined_values():
    (row,) = best_rows(summary(0.3, 0.2, None))
    assert row["permuted"] == "–"
    assert row["image onset"] == "–"
    assert row["at"] == "step 9, a.attn1, ridge"
    assert number(Interval(mean=None, low=None, high=None)) == "–"
    assert number(Interval(mean=0.5, low=None, high=None)) == "0.50"
    assert str(Interval(mean=None, low=None, high=None)) == "–"
    assert number(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (THIRD, "3 [2, 4]"),
        (WIDE, "not determined [1, >15]"),
        (Crossing(), "–"),
        (Crossing(step=None, low=14, high=None, distribution=[0.0] * 15),
         "not determined [14, >15]"),
    ],
)  # fmt: skip
def test_step_says_what_is_not_determined(value, text):
    assert step(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Lead(steps=3, low=2, high=5, determined=True), "3 [2, 5]"),
        (Lead(steps=3, low=-4, high=9), "not determined [-4, 9]"),
        (Lead(steps=3), "not determined (no bounds)"),
        (Lead(), "–"),
    ],
)
def test_lead_says_what_is_not_determined(value, text):
    assert lead(value) == text


@pytest.mark.parametrize(
    ("reason", "clause"),
    [
        ("not_above_position", ", as the score{} at the last step is not clearly above that of "
         "position alone."),
        ("too_few_prompts", ", as too few test prompts have a score{}, and one of position "
         "alone, at every step."),
        (None, "."),
    ],
)  # fmt: skip
def test_headline_gives_the_reason_why_an_onset_is_undefined(reason, clause):
    made = summary(0.1, 0.2, 0.1, onset=Crossing())
    emergence = made.properties["depth"].emergence
    emergence.probe.undefined_because = reason
    (line,) = headline(made)
    clause_of_probes = clause.format(" of probes of a.attn1")
    assert line.endswith(f"). Its onset is undefined{clause_of_probes}")
    emergence.decoded.undefined_because = reason
    emergence.probe = curve(THIRD)
    (line,) = headline(made)
    assert line.endswith(
        f"; the onset of the labeler on the step's decoded latents is undefined{clause.format('')}"
    )


def test_headline_says_that_an_onset_is_not_determined():
    (line,) = headline(summary(0.3, 0.2, 0.1, onset=WIDE))
    assert "from a step that is not determined [1, >15]" in line
    assert "from step" not in line


@pytest.mark.parametrize(
    ("decoded", "clean", "words"),
    [
        (
            Lead(steps=3, low=2, high=5, determined=True),
            Lead(steps=0, low=-1, high=1, determined=True),
            "decoded latents is 3 [2, 5] steps, and over the labeler on the predicted clean image "
            "0 [-1, 1] steps.",
        ),
        (
            Lead(steps=3, low=-4, high=9),
            Lead(),
            "decoded latents is not determined [-4, 9], and over the labeler on the predicted "
            "clean image undefined.",
        ),
    ],
)
def test_headline_says_which_lead_is_determined(decoded, clean, words):
    made = summary(0.3, 0.2, 0.1)
    result = made.properties["depth"]
    result.emergence = result.emergence.model_copy(update={"decoded": curve(THIRD)})
    records = {"decoded": decoded, "clean": clean}
    result.leads = result.leads.model_copy(
        update={name: LeadRecord(onset=one, settled=Lead()) for name, one in records.items()}
    )
    (line,) = headline(made)
    assert line.endswith(f"the lead of the probes over the labeler on {words}")


def test_headline_compares_with_a_control_in_its_own_best_cell():
    """A control that scores low in the probe's cell is judged by the cell that suits it best."""
    made = summary(0.3, 0.2, 0.1)
    result = made.properties["depth"]
    result.controls.shuffled_labels = control(0.58, same=0.0)
    result.not_beyond = result.controls.not_exceeded()
    (line,) = headline(made)
    assert "not clearly above shuffled labels (by 0.02" in line


def test_best_rows_list_optional_controls_last():
    (row,) = best_rows(summary(0.3, 0.2, 0.1, mlp=0.9))
    keys = list(row)
    start = keys.index("position")
    assert keys[start : start + 5] == ["position", "shuffled", "permuted", "latents", "mlp"]
    assert row["mlp"] == "0.90 [0.85, 0.95]"


def test_text_imports_neither_torch_nor_plotting():
    heavy = "{'torch', 'diffusers', 'matplotlib', 'transformers'}"
    code = (
        "import sys, ldmprobe_core.analysis.report.text; "
        f"loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_headline_of_one_test_prompt_compares_with_nothing():
    whole = summary(0.3, 0.2, 0.1)
    result = whole.properties["depth"]
    for cell in (result.best, result.last):
        cell.score.low = cell.score.high = None
    for record in result.controls.by_name().values():
        record.difference.low = record.difference.high = None
    result.clusters.prompts = 1
    (line,) = headline(whole)
    assert line.endswith("the best cell, 0.60, has no interval (1 test prompt) to compare by.")
    assert best_rows(whole)[0]["above position"] == "no interval"
    result.undefined.best = 4
    (line,) = headline(whole)
    assert line.endswith("no interval (1 test prompt, 4 test scores undefined) to compare by.")
    assert overview(whole) == (
        "0.60 rank correlation at step 9, a.attn1; too few test "
        "prompts with a defined score for intervals and comparisons."
    )


def test_sentences_on_labels_without_variation_name_this_and_no_cell():
    whole = summary(0.3, 0.2, 0.1)
    nothing = Interval(mean=None, low=None, high=None)
    whole.properties["depth"].best.score = nothing
    clause = (
        "the rank correlation of its probes is undefined in every test image, as where the labels "
        "or the predictions do not vary within an image, so that nothing can be compared."
    )
    assert headline(whole) == [f"Depth: {clause}"]
    assert overview(whole) == f"not measured {clause}"
    output = StringIO()
    print_summary(whole, "runs/x", Console(file=output, markup=False))
    assert "Best cell" not in output.getvalue()


def test_overview_says_score_controls_and_step():
    """A score of 0.6, and an onset at step 3 [2, 4], or one that spans all steps, or none."""
    assert overview(summary(0.3, 0.3, 0.3)) == (
        "0.60 [0.55, 0.65] rank correlation at step 9, a.attn1; "
        "+0.30 [0.25, 0.35] above position alone, the least margin over 3 controls, all exceeded; "
        "step 3 [2, 4] of 15 (in 90% of resamples): from here on, half of the probes' final gain "
        "over position is kept."
    )
    assert overview(summary(0.3, 0.3, 0.3, onset=WIDE)).endswith(
        "; not determined [1, later] step from which on half of the probes' final gain over "
        "position is kept."
    )
    assert overview(summary(0.3, 0.3, 0.3, onset=Crossing())).endswith(
        "all exceeded; undefined when it emerges."
    )
    assert "; not clearly above shuffled labels; step" in overview(summary(0.3, 0.6, 0.3))
    assert "; not clearly above position alone, shuffled labels and permuted weights; " in overview(
        summary(0.6, 0.6, 0.6)
    )


@pytest.mark.parametrize(
    ("steps", "low", "high", "determined", "text"),
    [
        (5, 3, 6, True, "5 steps [3, 6] ahead of the labeler in {}"),
        (1, 1, 1, True, "1 step [1, 1] ahead of the labeler in {}"),
        (0, 0, 0, True, "open [0, 0] lead in steps over the labeler in {}"),
        (1, -1, 2, True, "open [-1, 2] lead in steps over the labeler in {}"),
        (-1, -2, 0, True, "open [-2, 0] lead in steps over the labeler in {}"),
        (-3, -4, -1, True, "3 steps [1, 4] behind the labeler in {}"),
        (6, 3, 10, False, f"3 to 10 steps ahead of the labeler in {{}}{RANGE}"),
        (0, -4, 4, False, "open [-4, 4] lead in steps over the labeler in {}"),
        (3, 0, 7, False, "open [0, 7] lead in steps over the labeler in {}"),
        (-4, -8, 0, False, "open [-8, 0] lead in steps over the labeler in {}"),
        (-6, -9, -2, False, f"2 to 9 steps behind the labeler in {{}}{RANGE}"),
    ],
)
def test_overview_names_an_order_only_if_the_interval_of_the_lead_excludes_zero(
    steps, low, high, determined, text
):
    made = summary(0.3, 0.3, 0.3)
    lead = Lead(steps=steps, low=low, high=high, determined=determined)
    made.properties["depth"].leads = LeadsRecord(
        **{name: LeadRecord(onset=Lead() if "recalibrated" in name else lead, settled=Lead())
           for name in RIVALS}
    )  # fmt: skip
    decoded, clean = (
        text.format(f"the {name}") for name in ("decoded latents", "predicted clean image")
    )
    assert overview(made).endswith(f"; {decoded}; {clean}.")


def test_best_cell_prints_as_a_line():
    best = summary(0.3, 0.2, 0.1).properties["depth"].best
    line = "step 9, a.transformer_blocks.0.attn1, ridge: spearman 0.60 [0.55, 0.65]"
    assert f"{best}" == line


def test_warnings_name_what_is_unusual_and_no_zeros():
    made = summary(0.3, 0.2, 0.1)
    assert warning_lines(made, "activations") == []
    made.properties["depth"].undefined = UndefinedRecord(best=0, any=3, truth_empty=2)
    made.properties["depth"].missing = 0.25
    made.properties["depth"].controls.position.undefined = 4
    made.nonfinite, made.nonfinite_permuted = 7, 0
    made.nonfinite_cells = [
        NonfiniteRecord(network="trained", step=i, layer="a", share=0.5, samples=i)
        for i in range(1, 13)
    ]
    first, second = warning_lines(made, "activations")
    assert first.startswith(
        "Non-finite activation values: 7; in the untrained denoiser 0: step 1 of a: 50% of its "
        "values, 1 sample left out; step 2 of a: "
    )
    assert first.endswith("10 samples left out; and 2 more cells (summary.json).")
    assert "values, 1 held-out sample left out; step 2 " in warning_lines(made, "statistics")[0]
    assert second == (
        "depth: 0 of 5 test scores of the best cell are undefined and excluded "
        "from its mean (3 over all cells); position control: 4 scores undefined; 25.0% of the "
        "pixels of its labels are not measured: grey in the figures, left out of fits and scores."
    )


def test_warnings_name_leads_of_fewer_images_and_a_choice_from_nothing():
    made = summary(0.3, 0.2, 0.1)
    depth = made.properties["depth"]
    depth.undefined = UndefinedRecord(best=0, any=0, unchosen=True)
    depth.leads.samples = 64
    known, unknown = Lead(steps=3, low=2, high=5, determined=True), Lead()
    depth.leads.clean = LeadRecord(onset=unknown, settled=known, samples=41)
    depth.leads.decoded = LeadRecord(onset=known, settled=known, samples=64)
    # Three images are too few for a lead, and without step images of training samples no labeler
    # is recalibrated.
    depth.leads.clean_recalibrated = LeadRecord(onset=unknown, settled=unknown, samples=3)
    depth.leads.decoded_recalibrated = LeadRecord(onset=unknown, settled=unknown, samples=0)
    (line,) = warning_lines(made, "activations")
    assert "leads are of 41 or more of 64 images" in line
    assert "nothing could be chosen" in line
    depth.undefined, depth.leads.clean.samples = UndefinedRecord(best=0, any=0), 64
    assert warning_lines(made, "activations") == []


def test_warnings_count_empty_masks_of_masks_alone():
    made = summary(0.3, 0.2, 0.1)
    made.properties = {"foreground": made.properties["depth"]}
    made.properties["foreground"].undefined = UndefinedRecord(
        best=0, any=0, truth_empty=2, both_empty=1
    )
    assert warning_lines(made, "activations") == [
        "foreground: 2 label masks are empty, 1 of them predicted empty too and scored 1."
    ]


@pytest.mark.parametrize(
    ("recalibrated", "card", "clause"),
    [
        (Lead(), "", "6 [3, 8] steps, and over"),
        (
            Lead(steps=6, low=3, high=8, determined=True),
            ", also if recalibrated to the labels",
            "6 [3, 8] steps (6 [3, 8] steps with its maps recalibrated to the labels), and over",
        ),
        (
            Lead(steps=5, low=2, high=8, determined=False),
            f"; if recalibrated to the labels, 2 to 8 steps ahead of it{RANGE}",
            "6 [3, 8] steps (not determined [2, 8] with its maps recalibrated to the labels), and",
        ),
    ],
)
def test_sentences_on_leads_name_the_recalibrated_labeler_too(recalibrated, card, clause):
    made = summary(0.3, 0.2, 0.1)
    result = made.properties["depth"]
    result.emergence = result.emergence.model_copy(update={"decoded": curve(THIRD)})
    leads = dict.fromkeys(RIVALS, Lead(steps=6, low=3, high=8, determined=True))
    leads["decoded_recalibrated"] = recalibrated
    result.leads = LeadsRecord(
        **{name: LeadRecord(onset=one, settled=Lead()) for name, one in leads.items()}
    )
    fact = f"; 6 steps [3, 8] ahead of the labeler in the decoded latents{card}; 6 steps"
    assert fact in overview(made)
    (line,) = headline(made)
    assert f"the labeler on decoded latents is {clause} " in line


def test_sentences_begin_with_the_title_of_a_property():
    assert property_title("depth") == "Depth"
    assert property_title("normals_x") == "Surface normal, x"
    assert property_title("of_another_process") == "Of another process"
