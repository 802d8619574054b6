"""Random scenes and their captions."""

from dataclasses import replace

import numpy as np

from ldmprobe_core.study.prompt_sets import CATEGORIES, caption
from ldmprobe_core.tabletop import render
from ldmprobe_core.tabletop.scenes import (
    Arrangement,
    Item,
    arrangement_caption,
    sample_arrangement,
    sample_scene,
)

TWO_BALLS = Arrangement(
    items=(
        Item("ball", "red", 0, False, 1.0, (0.0, -0.8, 0.0)),
        Item("ball", "blue", 0, False, 0.5, (1.0, 0.8, 0.6)),
    ),
    floor="gray", wall=None, walls=(), distance=5.0, elevation=30, roll=0, field_of_view=40,
    lamp_azimuth=0, lamp_elevation=50,
)  # fmt: skip


def test_sample_arrangement_keeps_objects_visible_and_size_uninformative():
    ordered = []
    for seed in range(60):
        drawn = sample_arrangement(seed)
        assert drawn == sample_arrangement(seed)
        assert len({item.category for item in drawn.items}) == len(drawn.items)
        assert min(item.place[2] for item in drawn.items) >= 0
        picture = render.render(drawn)
        areas = (picture.objects > 0.5).sum((1, 2))
        assert areas.min() >= 12, drawn
        depths = [picture.depth[mask > 0.5].mean() for mask in picture.objects]
        ordered += [
            (areas[i] < areas[j]) == (depths[i] > depths[j])
            for i in range(len(depths))
            for j in range(i)
        ]
    assert 0.4 < np.mean(ordered) < 0.7  # size alone hardly tells


def test_arrangement_caption_lists_the_objects():
    assert arrangement_caption(TWO_BALLS) == "a red ball and a blue ball on a gray floor"
    three = (*TWO_BALLS.items, Item("orange", "orange", 0, False, 1, (0, 0, 0)))
    words = arrangement_caption(replace(TWO_BALLS, items=three, wall="white"))
    assert words == "a red ball, a blue ball and an orange on a gray floor, white wall"


def test_sample_scene_draws_every_category_visibly():
    seen = {}
    for seed in range(80):
        scene = sample_scene(seed)
        seen.setdefault(scene.category, scene)
    assert set(seen) == set(CATEGORIES)
    for scene in seen.values():
        share = render.render(scene).foreground.mean()
        assert 0.01 < share < 0.6, scene


def test_caption_uses_articles_and_names_the_wall_if_any():
    assert (
        caption("cube", "orange", "gray", "white") == "an orange cube on a gray floor, white wall"
    )
    assert caption("orange", "orange", "black", None) == "an orange on a black floor"
