"""Tests of the estimate of the time left, with simulated times of units."""

from __future__ import annotations

import heapq
import random

import pytest

from tasks.time_left import TimeLeft, UnitCost


def simulate(times, workers, load_s, between_s=0.0):
    """Carry out units in order on workers, each of which first loads the model.

    After each unit its worker waits for ``between_s`` seconds, as for a workflow system.

    Returns:
        (stage, name, seconds, end) of each unit, in the order of their ends.
    """
    free = [(0.0, load_s) for _ in range(workers)]
    ends = []
    for stage, names in times.items():
        for name, seconds in names.items():
            begin, load = heapq.heappop(free)
            heapq.heappush(free, (begin + load + seconds + between_s, 0.0))
            ends.append((stage, name, load + seconds, begin + load + seconds))
    return sorted(ends, key=lambda unit: unit[3])


def costs(times, scale):
    """Costs in proportion to the noiseless times, on another scale for each stage."""
    return {
        stage: {name: UnitCost(seconds * scale[stage]) for name, seconds in units.items()}
        for stage, units in times.items()
    }


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("factor", "between_s"), [(0.8, 0.0), (1.25, 0.0), (1.25, 0.8)])
@pytest.mark.parametrize("seed", range(5))
def test_time_left_is_within_half_of_the_truth_from_a_fifth_on(workers, factor, between_s, seed):
    """Stages of unequal units, of which later ones cost less or more than is expected."""
    draw = random.Random(seed)
    mean = {
        "generate": {str(i): 30.0 if i % 4 else 55.0 for i in range(40)},
        "label": {str(i): 4.0 if i % 4 else 9.0 for i in range(40)},
        "probe": {str(i): 1.2 + 0.8 * (i % 3) for i in range(135)},
    }
    times = {
        stage: {name: seconds * draw.lognormvariate(0, 0.1) for name, seconds in units.items()}
        for stage, units in mean.items()
    }
    ends = simulate(times, workers, 12.0, between_s)
    closing_s = 20.0
    truth = ends[-1][3] + closing_s
    left = TimeLeft(
        costs(mean, {"generate": 1.0, "label": factor, "probe": factor}), workers, closing_s
    )
    assert left.of_flow(0.0) is None
    for stage, name, seconds, now in ends:
        left.record(stage, name, seconds, now)
        if now > truth / 5:
            assert within_half(left.of_flow(now), truth - now)
            last = max(end for verb, _, _, end in ends if verb == stage)
            begin = min(end for verb, _, _, end in ends if verb == stage)
            if now > begin + (last - begin) / 5:
                assert within_half(left.of_stage(stage, now), last - now)


def within_half(estimate, truth):
    """Whether an estimate differs by a factor of 1.5 at most; 8 s more at the end of a stage."""
    return truth / 1.5 - 8 <= estimate <= truth * 1.5 + 8


def test_time_left_measures_how_many_units_run_at_once():
    units = {str(i): UnitCost(1.0) for i in range(80)}
    left = TimeLeft({"generate": units}, workers=1)
    for i in range(16):
        left.record("generate", str(i), 10.0, now=10.0)
    assert left.of_flow(10.0) == pytest.approx(64 * 10 / 16)


def test_time_left_is_not_moved_by_one_slow_unit():
    left = TimeLeft({"generate": {str(i): UnitCost(1.0) for i in range(10)}})
    for i, (seconds, now) in enumerate([(100.0, 100.0), (10.0, 110.0), (10.0, 120.0)]):
        left.record("generate", str(i), seconds, now)
    assert left.of_stage("generate", 120.0) == pytest.approx(70.0)


def test_time_left_counts_down_between_the_ends_of_units():
    left = TimeLeft({"generate": {str(i): UnitCost(1.0) for i in range(3)}})
    left.record("generate", "0", 10.0, now=10.0)
    assert left.of_stage("generate", 14.0) == pytest.approx(16.0)
    assert left.of_stage("generate", 99.0) == 0.0


def test_time_left_of_a_resumed_flow_excludes_complete_units():
    """Complete units give their former seconds at once, or none if these are lost."""
    units = {str(i): UnitCost(1.0, is_done=i < 6) for i in range(10)}
    left = TimeLeft({"generate": units})
    for i in range(6):
        left.record("generate", str(i), 8.0 if i % 2 else 0.0, now=0.1)
    assert left.of_stage("generate", 0.1) == pytest.approx(4 * 8.0)


def test_time_left_of_a_stage_without_units_follows_from_the_stage_before():
    left = TimeLeft({"generate": {"a": UnitCost(2.0)}, "probe": {"b": UnitCost(3.0)}}, closing=5.0)
    left.record("generate", "a", 4.0, now=4.0)
    assert left.of_stage("probe", 4.0) == pytest.approx(6.0)
    assert left.of_flow(4.0) == pytest.approx(6.0 + 10.0)
