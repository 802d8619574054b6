"""Small heatmaps: colours and places of cells, and the alternative text."""

from xml.etree import ElementTree

from ldmprobe_core.analysis.index.thumbnails import heatmap_svg

MEANS = {("a_layer", 1): 0.0, ("a_layer", 3): 1.0, ("b<layer>", 1): 0.5, ("b<layer>", 3): 0.25}


def test_heatmap_places_layers_in_rows_and_steps_in_columns():
    figure = ElementTree.fromstring(heatmap_svg(MEANS, (0.0, 1.0), "Dice"))  # our own figure
    cells = {
        cell.find("title").text: (int(cell.get("x")) // 10, int(cell.get("y")) // 10)
        for cell in figure.findall("rect")
    }
    assert cells == {
        "step 1, a_layer: 0.00": (0, 0), "step 3, a_layer: 1.00": (1, 0),
        "step 1, b<layer>: 0.50": (0, 1), "step 3, b<layer>: 0.25": (1, 1),
    }  # fmt: skip
    colors = [cell.get("fill") for cell in figure.findall("rect")]
    # The ends of matplotlib's cividis, as published.
    assert colors[:2] == ["#00224e", "#fee838"]
    assert len(set(colors)) == 4
    assert figure.get("aria-label") == (
        "Dice by layer (rows) and step (columns), colours from 0.00 to 1.00; highest 1.00 at step "
        "3 of a_layer"
    )


def test_heatmap_of_equal_scores_has_one_colour():
    figure = ElementTree.fromstring(heatmap_svg({("a", 1): 0.3, ("a", 2): 0.3}, (0.3, 0.3), "m"))
    assert {cell.get("fill") for cell in figure.findall("rect")} == {"#fee838"}
