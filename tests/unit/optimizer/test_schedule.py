"""Learning-rate schedules at their edges."""

import itertools
import math

import pytest

from trainer.optimizer.config import AdamW
from trainer.optimizer.schedule import lr_scale

STEPS = 100
SCHEDULES = ("constant", "cosine", "linear", "wsd")


def scales(schedule, steps=STEPS, **more):
    config = AdamW(schedule=schedule, **{"warmup_steps": 10, "min_lr_ratio": 0.1, **more})
    return [lr_scale(config, step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_from_its_first_step_to_the_peak(schedule):
    assert scales(schedule)[:10] == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1)])
def test_the_last_step_is_at_the_floor(schedule, last):
    assert scales(schedule)[-1] == pytest.approx(last)


def test_cosine_is_half_way_down_in_the_middle_and_flat_at_its_ends():
    curve = scales("cosine")
    assert curve[54] == pytest.approx(0.55), "step 55 is half way between 10 and 100"
    assert curve[32] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 23 / 90)))
    assert 1 - curve[10] < 0.001 and curve[-2] - curve[-1] < 0.001 < curve[54] - curve[55]


def test_linear_goes_down_in_equal_steps():
    curve = scales("linear")[9:]
    assert [a - b for a, b in itertools.pairwise(curve)] == pytest.approx([0.9 / 90] * 90)


def test_wsd_stays_until_its_last_share_and_then_falls_linearly():
    curve = scales("wsd", decay_fraction=0.2)
    assert curve[9:80] == [1.0] * 71
    assert curve[80:] == pytest.approx([1 - 0.9 * step / 20 for step in range(1, 21)])


def test_wsd_over_everything_after_warm_up_is_linear():
    assert scales("wsd", decay_fraction=0.9) == pytest.approx(scales("linear"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("floor", "last"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_floor_may_be_nothing_or_the_peak(schedule, floor, last):
    curve = scales(schedule, min_lr_ratio=floor)
    assert curve[-1] == (1.0 if schedule == "constant" else pytest.approx(last)) and max(curve) == 1.0
    assert min(curve[10:]) >= min(floor, curve[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_is_near_the_peak(schedule, warmup):
    curve = scales(schedule, warmup_steps=warmup)
    assert curve[0] == pytest.approx(1.0, abs=0.01) and all(a >= b for a, b in itertools.pairwise(curve))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_and_one_that_ends_with_warm_up(schedule):
    assert 0 < scales(schedule, steps=1, warmup_steps=0)[0] <= 1
    assert scales(schedule, steps=11, warmup_steps=10)[9] == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_leaves_its_range_or_goes_up_after_warm_up(schedule):
    for steps, warmup in ((7, 3), (100, 99), (1000, 0)):
        curve = scales(schedule, steps=steps, warmup_steps=warmup)
        assert all(0 < value <= 1 for value in curve)
        assert all(a >= b for a, b in zip(curve[max(0, warmup - 1) :], curve[warmup:], strict=False))
