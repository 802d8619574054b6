"""Tests of the seeds of scheduled studies: a range for every day, and what is refused."""

from __future__ import annotations

import itertools
from datetime import date, timedelta

import pytest
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.rolling_seed import with_rolling_seed
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import make_samples

# 56 years since 1970-01-01, of which 14 are leap years (1972 to 2024), then January and February.
DAYS_TO_MARCH_2026 = 56 * 365 + 14 + 31 + 28


def test_rolling_seed_adds_the_days_range_to_the_studys_own_seed():
    study = parse_study({"prompts": {"samples": 12, "seed": 7}})
    of_day = with_rolling_seed(study, date(2026, 3, 1))
    seeds = [sample.seed for sample in make_samples(of_day)]
    assert seeds == [DAYS_TO_MARCH_2026 * 100_000 + 7 + i for i in range(12)]
    same = {"prompts": {"seed"}}
    assert of_day.model_dump(exclude=same) == study.model_dump(exclude=same)
    assert of_day.run_name != study.run_name
    assert with_rolling_seed(study, date(2026, 3, 1)) == of_day


def test_no_two_days_share_the_last_32_bits_of_a_seed():
    study = parse_study({"prompts": {"samples": 100_000}})
    days = [date(2020, 1, 1) + timedelta(days) for days in (0, 1, 2, 365, 3653, 24_000)]
    first = sorted(with_rolling_seed(study, day).prompts.seed for day in days)
    assert all(b - a >= 100_000 for a, b in itertools.pairwise(first))
    assert first[-1] + 99_999 < 2**32
    assert first[-1] == with_rolling_seed(study, days[-1]).prompts.seed


def test_rolling_seed_of_source_images_is_that_of_their_noise_and_of_the_splits(tmp_path):
    for i in range(4):
        Image.new("RGB", (16, 16), (50 * i, 90, 30)).save(tmp_path / f"{i}.png")
    content = {"source": "images", "images": {"folder": str(tmp_path), "seed": 3}}
    of_day = with_rolling_seed(parse_study(content), date(1970, 1, 3))
    assert (of_day.images.seed, of_day.prompts.seed) == (200_003, 200_000)
    assert [sample.seed for sample in make_samples(of_day)] == [200_003 + i for i in range(4)]


@pytest.mark.parametrize(
    ("prompts", "day", "message"),
    [
        ({"samples": 12, "seed": 99_989}, date(2026, 3, 1),
         r"^prompts\.seed: with 12 images it reaches beyond .* \(99989\)\. Fix: set prompts\.seed"),
        ({"files": "prompts.csv"}, date(2026, 3, 1),
         r"^prompts\.files: .* \(prompts\.csv\), .* Fix: name the prompts in prompts\.items"),
        ({"samples": 12}, date(1969, 12, 31), r"^schedule: the date is too early .*\(1969-12-31\)"),
    ],
)  # fmt: skip
def test_rolling_seed_refuses_what_would_repeat_seeds(prompts, day, message):
    with pytest.raises(UserError, match=message):
        with_rolling_seed(parse_study({"prompts": prompts}), day)
