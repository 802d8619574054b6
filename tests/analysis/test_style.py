"""SVG files of figures, and the heatmap whose cells carry their values."""

import io
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from summaries import interval
from summaries import summary as made_summary

from ldmprobe_core.analysis.records import UndefinedRecord
from ldmprobe_core.analysis.report.drawing.heatmaps import (
    color_range,
    heatmap,
    heatmap_caption,
    heatmap_text,
    other_heatmaps_text,
)
from ldmprobe_core.analysis.report.figures import class_figure, curves_caption
from ldmprobe_core.analysis.report.style import INK, svg
from ldmprobe_core.storage.run import Run

SVG = "{http://www.w3.org/2000/svg}"


def drawn():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])[0].set_gid("line-1")
    axes.set_title("a < b & c")
    axes.text(1, 3, "0.71", color=INK)
    return figure


def test_svg_keeps_text_and_has_equal_bytes_for_equal_figures():
    once = svg(drawn())
    assert once == svg(drawn())
    root = ET.fromstring(once)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "a < b & c" in texts
    assert "0.71" in texts


def test_svg_is_cropped_as_matplotlib_crops_a_figure_that_it_draws_once_more():
    figure = Figure(figsize=(4, 2))
    left, right = figure.subplots(1, 2)
    left.plot([1, 2], [3e5, 4e5], label="a curve")
    left.set_ylabel("a label\nof two lines")
    figure.colorbar(right.imshow(np.arange(4.0).reshape(2, 2)), ax=right, label="a bar")
    right.set_aspect("equal")
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1))
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight")
    ours, expected = ET.fromstring(svg(figure)), ET.fromstring(buffer.getvalue())
    boxes = [[float(part) for part in root.get("viewBox").split()] for root in (ours, expected)]
    assert boxes[0] == pytest.approx(boxes[1], abs=1e-4)
    assert boxes[0][2:] != pytest.approx([288, 144], abs=1)  # the size without cropping


def test_svg_titles_are_escaped_and_belong_to_their_element():
    root = ET.fromstring(svg(drawn(), {"line-1": "<b>3 & 4</b>"}))
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == "line-1"]
    assert [title.text for title in group.iter(f"{SVG}title")] == ["<b>3 & 4</b>"]
    assert sum(1 for _ in root.iter(f"{SVG}title")) == 1


def test_svg_has_no_background_and_replaces_black_and_grey_in_the_dark():
    """Colours of data and of text on coloured cells stay as they are."""
    figure = drawn()
    figure.axes[0].axhline(3.5, color="0.35")
    text = svg(figure).decode()
    assert "fill: #ffffff" not in text
    style, drawing = text.split("</style>", 1)
    dark = style.split("prefers-color-scheme: dark", 1)[1]
    replaced = set(re.findall(r'"(?:fill|stroke): (#[0-9a-f]{6})"', dark))
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing))
    greys = {color for color in used if color[1:3] == color[3:5] == color[5:7]}
    assert greys - replaced == {INK}


@pytest.mark.parametrize("missing", [False, True])
def test_heatmap_titles_are_the_values_of_its_cells(missing):
    cells = np.random.default_rng(0).normal(size=(3, 2))
    if missing:
        cells[1, 1] = np.nan
    summary = made_summary(0.3, 0.2, 0.1)
    summary.properties = {"foreground": summary.properties["depth"]}
    result = summary.properties["foreground"]
    result.best.step, result.best.layer, result.best.metric = 2, "b", "dice"
    result.ceilings = {"4x4": 0.8, "8x8": 0.95}
    curves = SimpleNamespace(
        cells=cells, kind="ridge", position=np.array([0.1, np.nan]),
        other_cells={"permuted": np.full((3, 2), -7.0)},
    )  # fmt: skip
    assert color_range(curves) == (-7.0, np.nanmax(cells))
    figure, titles = heatmap("foreground", curves, ["a.attn1", "b"], summary)
    expected = {
        f"step {step + 1}, {layer}: {cells[step, i]:.3f}"
        for step in range(3)
        for i, layer in enumerate(["a.attn1", "b"])
        if np.isfinite(cells[step, i])
    }
    root = ET.fromstring(svg(figure, titles))
    assert {title.text for title in root.iter(f"{SVG}title")} == expected
    texts = "".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "ceiling 0.80 to 0.95" in texts
    assert "position 0.10" in texts
    assert [one.get("id") for one in root.iter(f"{SVG}g")].count("best-cell") == 1


@pytest.mark.parametrize("empty", [False, True])
def test_a_heatmap_without_a_measured_score_names_no_best_cell(empty):
    summary = made_summary(0.3, 0.2, 0.1)
    result = summary.properties["depth"]
    result.best.step, result.best.layer = 2, "b"
    assert heatmap_text("depth", summary).endswith("; best at step 2, b.")
    curves = SimpleNamespace(
        cells=np.full((3, 2), np.nan), kind="ridge", position=np.array([np.nan]), other_cells={}
    )
    result.undefined = UndefinedRecord(best=0, any=9, unchosen=True)
    caption = heatmap_caption("depth", curves, ["a", "b"], summary)
    assert "step 2 of b, which is the first one, as no validation score is defined" in caption
    result.best.score = interval(np.nan).model_copy(update={"mean": None})
    result.undefined = UndefinedRecord(best=5, any=9, truth_empty=5 * empty)
    figure, titles = heatmap("depth", curves, ["a", "b"], summary)
    root = ET.fromstring(svg(figure, titles))
    assert "best-cell" not in [one.get("id") for one in root.iter(f"{SVG}g")]
    caption = heatmap_caption("depth", curves, ["a", "b"], summary)
    assert "frame marks" not in caption
    why = "so nothing is measured." if empty else "so that nothing can be compared."
    assert caption.endswith(why)
    assert "No cell has a frame" in caption
    assert heatmap_text("depth", summary).endswith("; nothing is measured.")


def test_captions_say_by_how_much_layers_and_steps_differ_and_where_curves_cross():
    cells = np.array([[0.2, 0.5], [0.3, 0.9]])
    summary = made_summary(0.3, 0.2, 0.1)
    summary.properties = {"foreground": summary.properties["depth"]}
    best = summary.properties["foreground"].best
    best.step, best.layer, best.metric = 2, "b", "dice"
    curves = SimpleNamespace(cells=cells, kind="ridge")
    caption = heatmap_caption("foreground", curves, ["a", "b"], summary)
    assert "layers differ by up to 0.60; in this layer, steps differ by up to 0.40." in caption
    probe = np.array([[0.5, 9.0], [0.6, 9.0], [0.7, 9.0]])
    curves = SimpleNamespace(
        labeled=True, probe=probe, decoded=np.array([True, False]), decoded_steps=np.arange(1, 4),
        sources={
            "trajectory": np.array([[0.1, np.nan], [0.4, np.nan], [0.8, np.nan]]),
            "clean": np.array([[0.1, np.nan], [0.2, np.nan], [0.3, np.nan]]),
        },
    )  # fmt: skip
    assert curves_caption("foreground", curves, "dice").endswith(
        ", over the steps. The labeler's curves are of the 1 test image with step images, the "
        "probes' curve is of all 2. Compared on the former: On the decoded latents, the labeler's "
        "mean passes the probes' at step 3. On the predicted clean image, the labeler's mean never "
        "passes the probes'."
    )
    curves.sources["clean"] += 0.6
    assert curves_caption("foreground", curves, "dice").endswith(
        "On the predicted clean image, the labeler's mean is above the probes' from step 1 on."
    )
    curves.labeled, curves.sources = False, dict.fromkeys(curves.sources, np.full((3, 2), np.nan))
    assert curves_caption("foreground", curves, "dice") == (
        "How early foreground can be read: Dice of one layer's probes and of the controls, over "
        "the steps."
    )


@pytest.mark.parametrize(
    ("decoded", "clean", "text"),
    [
        (
            (0.1, 0.4, 0.8), (0.1, 0.8, 0.9),
            "On the decoded latents, the labeler's mean passes the probes' after step 3, at step 6 "
            "at the latest. On the predicted clean image, the labeler's mean passes the probes' at "
            "step 3.",
        ),
        (
            (0.1, 0.2, 0.3), (0.7, 0.8, 0.9),
            "On the decoded latents, the labeler's mean never passes the probes' at a step with "
            "images. On the predicted clean image, the labeler's mean is above the probes' from "
            "step 2 on, the first with images.",
        ),
    ],
)  # fmt: skip
def test_caption_tells_no_step_between_two_with_images(decoded, clean, text):
    """Steps 2, 3 and 6 of six have images."""
    steps, curves = np.array([2, 3, 6]), {}
    for source, values in (("trajectory", decoded), ("clean", clean)):
        curves[source] = np.full((6, 1), np.nan)
        curves[source][steps - 1, 0] = values
    shown = SimpleNamespace(
        labeled=True,
        probe=np.full((6, 1), 0.5),
        decoded=np.array([True]),
        decoded_steps=steps,
        sources=curves,
    )
    assert curves_caption("foreground", shown, "dice").endswith(f"over the steps. {text}")


def test_heatmaps_without_controls_are_not_described_as_having_some():
    cells = np.zeros((2, 2))
    curves = SimpleNamespace(other_cells={"permuted": cells}, partial_cells=cells)
    text, reading = other_heatmaps_text("depth", curves)
    assert text == (
        "The same cells of depth: controls in the colour scale of the heatmap above, and partial "
        "scores of probes (position regressed out) in another."
    )
    assert "control" in reading
    curves.other_cells = {}
    text, reading = other_heatmaps_text("depth", curves)
    assert text == (
        "The same cells of depth: partial scores of probes (position regressed out) in their own "
        "colour scale."
    )
    assert reading == ""


def test_class_figure_draws_the_class_that_leads_at_the_last_step(finished_run, monkeypatch):
    """The target is class 1; the classes 2, 3 and 4 have larger values than 5 before the end."""
    steps = len(finished_run.read("step_images", "step"))
    scores = np.zeros((steps, 12))
    scores[0, 2:5], scores[-1, 5] = 0.3, 0.25
    read = Run.read

    def replaced(self, group, name, **index):
        return scores if name == "class_score" else read(self, group, name, **index)

    monkeypatch.setattr(Run, "read", replaced)
    sample = int(finished_run.read("step_images", "sample")[0])
    axes = class_figure(finished_run, sample, 1, np.nan).axes[-1]
    drawn = [line.get_label() for line in axes.lines]
    names = [str(name) for name in finished_run.open("labels")["class"].values]
    assert drawn[:2] == [names[1], names[5]]
    assert len(drawn) == 5
