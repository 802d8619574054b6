"""Decisions about simulated studies with known truth; benchmarks/simulated_studies.py has more."""

import pytest

from benchmarks.simulated_studies import EMERGENCE, MATCHING, decide

STUDIES = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prop", "kind", "studies"),
    [("depth", kind, STUDIES) for kind in MATCHING]
    + [("foreground", kind, 3) for kind in ("noise, exact", "position", "text")],
)
def test_property_that_a_control_explains_is_not_beyond_all_controls(prop, kind, studies):
    """At most one of eight studies is wrong: at an error rate of 5 %, 94 % of such tests pass."""
    outcomes = [decide(kind, prop, seed) for seed in range(studies)]
    assert sum(bool(outcome.not_beyond) for outcome in outcomes) >= studies - 1
    named = sum(any(name in o.not_beyond for name in MATCHING[kind]) for o in outcomes)
    # The mean map of few training images is a weak control, so a probe of position may exceed it.
    assert named >= (studies // 2 if kind == "position" else studies - 1)


@pytest.mark.slow
def test_mask_that_emerges_has_its_onset_at_its_step():
    """Eighteen test images are too few for a mask to exceed all controls in every study."""
    for seed in range(3):
        outcome = decide("emerging", "foreground", seed)
        _, low, high, _ = outcome.onset
        assert low <= EMERGENCE <= high
        assert max(outcome.curve[: EMERGENCE - 1]) < 0.1 < min(outcome.curve[EMERGENCE - 1 :])


@pytest.mark.slow
def test_property_that_emerges_is_beyond_all_controls_from_its_step():
    outcomes = [decide("emerging", "depth", seed) for seed in range(STUDIES)]
    assert sum(not outcome.not_beyond for outcome in outcomes) >= STUDIES - 1
    covered = [low <= EMERGENCE <= high for _, low, high, _ in (o.onset for o in outcomes)]
    assert sum(covered) >= STUDIES - 1
