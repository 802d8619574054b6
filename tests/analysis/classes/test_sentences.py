"""Sentences on the step from which a class is recognised, in each source of step images."""

import pytest

from ldmprobe_core.analysis.classes.records import ClassesRecord
from ldmprobe_core.analysis.report.text import classes_line
from ldmprobe_core.probing.inference.bootstrap import Interval

NONE = Interval(mean=None, low=None, high=None)
EIGHT, THREE = Interval(mean=8, low=7, high=9), Interval(mean=3, low=None, high=None)


@pytest.mark.parametrize(
    ("shares", "steps", "by_prompt", "text"),
    [
        (
            (0.5, 0.75), (EIGHT, THREE), True,
            "the prompt's class leads in the decoded latents of the last step in 50.0% of 20 "
            "images whose steps were decoded, on average from step 8.00 [7.00, 9.00] on; in the "
            "predicted clean image of that step in 75.0%, on average from step 3.00 on.",
        ),
        (
            (0.5, None), (EIGHT, THREE), False,
            "the final image's top class leads in the decoded latents of the last step in 50.0% of "
            "20 images whose steps were decoded, on average from step 8.00 [7.00, 9.00] on; in "
            "the predicted clean image, on average from step 3.00 on in the images in which it "
            "leads at the last step there.",
        ),
        (
            (0.0, 0.0), (NONE, NONE), True,
            "the prompt's class leads in the decoded latents of the last step in 0.0% of 20 "
            "images whose steps were decoded; in the predicted clean image of that step in 0.0%.",
        ),
        (
            (0.0, None), (NONE, NONE), True,
            "the prompt's class leads in the decoded latents of the last step in 0.0% of 20 "
            "images whose steps were decoded.",
        ),
    ],
)  # fmt: skip
def test_each_source_has_its_own_share_and_step(shares, steps, by_prompt, text):
    """The second share is unknown in records of earlier releases."""
    record = ClassesRecord(
        accuracy=None, confident=0.9, by_prompt=by_prompt, samples=20, recognized=shares[0],
        recognized_clean=shares[1], agreement={},
        recognition_step=dict(zip(("trajectory", "clean"), steps, strict=True)),
    )  # fmt: skip
    tail = " 90.0% of final images have a top probability above 90%."
    assert classes_line(record) == f"Class: {text}{tail}"
    assert ("recognized_clean" in record.model_dump()) == (shares[1] is not None)


def test_sentence_names_the_steps_with_images_where_not_all_have_some():
    shares = [None, 0.2, None, 0.4, 0.6]
    record = ClassesRecord(
        accuracy=None, confident=0.9, by_prompt=True, samples=20, recognized=0.6,
        recognized_clean=0.75, agreement={"trajectory": shares, "clean": shares},
        recognition_step={"trajectory": EIGHT, "clean": THREE},
    )  # fmt: skip
    assert classes_line(record).startswith(
        "Class: the prompt's class leads in the decoded latents of the last step in 60.0% of 20 "
        "images whose steps were decoded, on average from step 8.00 [7.00, 9.00] on (of the steps "
        "with images: 2, 4, 5); in the predicted clean image of that step in 75.0%, on average "
        "from step 3.00 on (of the steps with images: 2, 4, 5). 90.0%"
    )
