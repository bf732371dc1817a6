"""Thinned curves: what is left is true, bounded, and does not depend on when it was looked at."""

import math

import numpy as np
import pytest

from trainer.report.thinning import Thinned


def values(number):
    rng = np.random.default_rng(number)
    steps, column = np.arange(1, number + 1), rng.standard_normal(number).cumsum()
    column[rng.random(number) < 0.1] = np.nan
    return steps, column


@pytest.mark.parametrize(("number", "most"), [(1, 8), (8, 8), (9, 8), (5000, 100), (4096, 64)])
def test_each_point_holds_the_least_the_mean_and_the_most_of_its_lines(number, most):
    steps, column = values(number)
    thinned = Thinned(["a", "b"], most)
    for step, value in zip(steps.tolist(), column.tolist(), strict=True):
        thinned.add(step, [value, -value])
    curve, per_point = thinned.curve("a"), thinned.lines_per_point
    assert per_point == 2 ** max(0, math.ceil(math.log2(number / most))), "no coarser than it must be"
    parts = [column[begin : begin + per_point] for begin in range(0, number, per_point)]
    assert len(curve.steps) == len(parts) <= most
    assert curve.steps.tolist() == [int(part[-1]) for part in np.split(steps, range(per_point, number, per_point))]
    for part, low, mean, high in zip(parts, curve.low, curve.mean, curve.high, strict=True):
        good = part[np.isfinite(part)]
        expected = (good.min(), good.mean(), good.max()) if good.size else (np.nan,) * 3
        assert (low, mean, high) == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)
    mirrored = thinned.curve("b")
    assert np.array_equal(-mirrored.high, curve.low, equal_nan=True)


def test_looking_on_the_way_changes_nothing():
    steps, column = values(3000)
    looked, once = Thinned(["a"], 50), Thinned(["a"], 50)
    for step, value in zip(steps.tolist(), column.tolist(), strict=True):
        looked.add(step, [value])
        once.add(step, [value])
        if step % 7 == 0:
            looked.curve("a")
    for name in ("steps", "low", "mean", "high"):
        assert getattr(looked.curve("a"), name) == pytest.approx(getattr(once.curve("a"), name), rel=1e-9, abs=1e-9, nan_ok=True)


def test_nothing_is_an_empty_curve():
    assert Thinned(["a"]).curve("a").empty
    strange = Thinned(["a"])
    strange.add(1, [math.inf])
    assert strange.curve("a").empty and len(strange.curve("a").steps) == 1
