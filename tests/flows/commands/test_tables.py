"""Tests of the tables that commands print."""

from __future__ import annotations

import re

from rich.console import Console

from flows.commands.tables import print_comparison, print_photographs, print_rows


def printed(function, *arguments):
    console = Console(width=80, markup=False)
    with console.capture() as captured:
        function(*arguments, console)
    lines = captured.get().splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("note"))
    return [" ".join(line.split()) for line in lines]


def photographs(known):
    return {
        "count": 2,
        "confident": 0.5,
        "known": known,
        "photographs": [
            {"name": "cat.png", "category": "ball", "probability": 0.934},
            {"name": "[dog].jpg", "category": "chair", "probability": 0.412},
        ],
    }


def test_print_photographs_names_picture_class_and_probability():
    lines = printed(print_photographs, photographs(1000))
    assert lines == [
        "picture class probability",
        "cat.png ball 0.93",
        "[dog].jpg chair 0.41",
        "Of 2 pictures 50.0% have a top probability above 90%.",
    ]


def test_print_photographs_says_how_few_words_a_classifier_knows():
    assert printed(print_photographs, photographs(12))[-1].startswith(
        "note: this classifier knows 12 classes only"
    )


def test_print_photographs_prints_nothing_without_photographs():
    assert printed(print_photographs, None) == []


def test_print_rows_breaks_long_names_instead_of_cutting_them():
    name = "up_blocks.2.attentions.1.transformer_blocks.0.attn1" * 2
    heading, *lines = printed(print_rows, [{"layer": name}])
    assert heading == "layer"
    assert len(lines) == 2
    assert "".join(lines) == name


EFFECTS = [
    {"dose": dose, "image": image, **dict.fromkeys(measures, "0.60 [-0.41, 0.70]")}
    for measures in [[f"measure {i} of the elsewhere" for i in range(7)]]
    for dose, image in (("2", "edited"), ("8", "probe of other images' labels"))
]


def test_print_rows_breaks_no_value_and_no_word_at_80_columns():
    """Beside names of 4 and 16 characters two measures of 18 fit, and seven take four tables."""
    lines = printed(lambda console: print_rows(EFFECTS, console, names=2))
    assert [line.split().count("dose") for line in lines].count(1) == 4
    values = [part for line in lines for part in re.findall(r"0\.60 \[-0\.41, 0\.70\]", line)]
    assert len(values) == 2 * 7
    words = {word for line in lines for word in line.split()}
    assert words == {
        "dose", "image", "measure", "of", "the", "elsewhere", *map(str, range(7)), "8", "edited",
        "probe", "other", "images'", "labels", "0.60", "[-0.41,", "0.70]",
    }  # fmt: skip


def test_print_rows_prints_one_table_where_there_is_room():
    console = Console(width=200, markup=False)
    with console.capture() as captured:
        print_rows(EFFECTS, console, names=2)
    heading = captured.get().split("0.60")[0]
    assert heading.count("measure") == 7


def test_print_comparison_has_a_column_for_each_run_within_80_columns():
    wide = "not determined [1, >15]"
    rows = [
        {"property": prop, "run": f"tabletop-{name * 10}", "difference": gap, "onset": wide,
         "differs in": "sampling.guidance"}
        for prop in ("depth", "shading")
        for name, gap in (("a", ""), ("b", "0.02 [-0.01, 0.05]"))
    ]  # fmt: skip
    lines = printed(print_comparison, rows)
    assert [line.split() for line in lines[:3]] == [
        ["depth", "tabletop-aaaaaaaaaa", "tabletop-bbbbbbbbbb"],
        ["difference", "0.02", "[-0.01,", "0.05]"],
        ["onset", *wide.split(), *wide.split()],
    ]
    assert max(len(line) for line in lines) <= 80
    assert not any("guidance" in line for line in lines)
