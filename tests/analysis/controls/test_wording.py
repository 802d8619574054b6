"""Sentences on intervals and controls, beside the tables that they belong to."""

import pytest
from summaries import summary

from ldmprobe_core.analysis.controls.wording import few_categories_sentence


@pytest.mark.parametrize(
    ("known", "wider", "expected"),
    [
        (4, "prompts", " The test images are of 4 categories, too few to be resampled: intervals "
         "hold for these alone, not for others."),
        (1, "prompts", " The test images are of one category: intervals hold for it alone, not "
         "for others."),
        (4, None, ""),
        (None, "categories", ""),
    ],
)  # fmt: skip
def test_intervals_of_few_categories_hold_for_these_alone(known, wider, expected):
    made = summary(0.3, 0.2, 0.1)
    clusters = made.properties["depth"].clusters
    clusters.few_categories, clusters.wider = known, wider
    assert few_categories_sentence(made) == expected
