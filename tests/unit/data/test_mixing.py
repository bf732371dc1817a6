"""Mixing: shares that stay exact for many sources and under a schedule, and the specification read a second time."""

import math
from fractions import Fraction

import numpy as np
import pytest

from trainer.data.mixing import MixOrder
from trainer.data.order import SampleOrder
from trainer.types import Draws

SPAN = 1 << 40


class Counting:
    """A source whose sample ids tell which of its draws they are."""

    num_samples = SPAN

    def at(self, positions: np.ndarray) -> Draws:
        return Draws(positions, np.zeros_like(positions))


def mix(start, end=None, total: int = 1) -> MixOrder:
    return MixOrder([Counting()] * len(start), start, start if end is None else end, total)


def drawn(order: MixOrder, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source of each position, and which of that source's draws it is."""
    ids = order.at(positions).ids
    return ids // SPAN, ids % SPAN


def quotas(start, end, total: int, positions: np.ndarray) -> np.ndarray:
    """(n, sources): the integral of the weights before each position, as the trapezoid and the rectangle that it is."""
    first, last = (np.asarray(weights, float) / np.sum(weights) for weights in (start, end))
    n = positions[:, None].astype(float)
    early, late = np.minimum(n, total), np.maximum(n - total, 0)
    return early * (first + first + (last - first) * early / total) / 2 + late * last


def halvings(num_sources: int) -> int:
    return math.ceil(math.log2(num_sources))


SCHEDULES = [
    ([51, 49], [51, 49], 1),
    ([1 / 3, 2 / 3], [1 / 3, 2 / 3], 1),
    ([0.9, 0.1], [0.1, 0.9], 6000),
    ([1, 0], [0, 1], 320),
    ([1, 0], [0, 1], 10**9),
    ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], 1),
    ([0.98, 0.01, 0.01], [0.98, 0.01, 0.01], 1),
    ([0, 0.4, 0.6], [1, 0, 0], 5000),
    ([1e-6, 1, 1, 0.5], [1, 1e-6, 0, 0.25], 5000),
    ([80.05, *[1.05] * 19], [80.05, *[1.05] * 19], 1),
    (range(1, 33), range(32, 0, -1), 4000),
]


@pytest.mark.parametrize(("start", "end", "total"), SCHEDULES)
@pytest.mark.parametrize("begin", [0, 10**9 - 2777])
def test_every_window_of_1000_holds_each_source_as_its_weight_says(start, end, total, begin):
    positions = np.arange(begin, begin + 8000)
    sources, _ = drawn(mix(start, end, total), positions)
    held = np.vstack([np.zeros(len(start)), np.cumsum(np.eye(len(start))[sources], axis=0)])
    due = quotas(start, end, total, np.arange(begin, begin + 8001))
    off = np.abs((held[1000:] - held[:-1000]) - (due[1000:] - due[:-1000])).max()
    assert off <= min(5, halvings(len(start))) + 1e-3  # the quotas above are floats
    if begin == 0:
        assert np.abs(held - due).max() <= halvings(len(start)) / 2 + 1e-6, "shares drift"


@pytest.mark.parametrize(("start", "end", "total"), SCHEDULES)
def test_each_source_goes_through_its_own_draws_one_by_one(start, end, total):
    sources, draws = drawn(mix(start, end, total), np.arange(7000))
    for source in range(len(start)):
        own = draws[sources == source]
        assert np.array_equal(own, np.arange(own.size))


def test_prefix_counts_do_not_drift_far_away():
    """Draw numbers are prefix counts: at any distance they are the integral of the weights, to half a draw for two sources."""
    for begin in (10**6, 10**12, 10**15):
        sources, draws = drawn(mix([51, 49]), np.arange(begin, begin + 1000))
        for source, weight in enumerate((Fraction(51, 100), Fraction(49, 100))):
            places = np.flatnonzero(sources == source)
            for place, draw in zip(places.tolist(), draws[places].tolist(), strict=True):
                assert abs(draw - (begin + place) * weight) <= Fraction(1, 2)


def left_draws(first: list[Fraction], last: list[Fraction], total: int, mid: int, draw: int) -> int:
    """L of the specification for a group whose members have these shares: in fractions of a draw, walking position by position."""

    def quota(shares: slice, n: int) -> Fraction:
        a, b, early = sum(first[shares]), sum(last[shares]), min(n, total)
        return a * early + (b - a) * Fraction(early**2, 2 * total) + b * (n - early)

    whole, half = slice(None), slice(mid)
    n = 0
    while quota(whole, n + 1) <= draw and not (n == total - 1 and not sum(last)):
        n += 1
    grown = (quota(half, n + 1) - quota(half, n)) * (draw - quota(whole, n)) / (quota(whole, n + 1) - quota(whole, n))
    return math.floor(quota(half, n) + grown + Fraction(1, 2))


def source_of(first: list[Fraction], last: list[Fraction], total: int, draw: int) -> tuple[int, int]:
    """The source to which a group's draw falls, counted inside the group, and which of its own draws it is."""
    if len(first) == 1:
        return 0, draw
    mid = (len(first) + 1) // 2
    before, after = (left_draws(first, last, total, mid, k) for k in (draw, draw + 1))
    if after > before:
        return source_of(first[:mid], last[:mid], total, before)
    source, own = source_of(first[mid:], last[mid:], total, draw - before)
    return mid + source, own


@pytest.mark.parametrize(
    ("start", "end", "total"),
    [
        ("0.51 0.49", "0.51 0.49", 1),
        ("0.9 0.1", "0.2 0.8", 90),
        ("5 7 4 3", "5 7 4 3", 1),  # an odd sum, and one half that is no whole multiple of the other
        ("7 5 4 5 7 1", "7 5 4 5 7 1", 1),
        ("0.5 0.3 0.2", "0.1 0.1 0.8", 120),
        ("0.4 0.3 0.2 0 0.1", "0 0 0.7 0.2 0.1", 77),
    ],
)
def test_the_stream_is_the_specification(start, end, total):
    first, last = ([Fraction(word) / sum(map(Fraction, weights.split())) for word in weights.split()] for weights in (start, end))
    order = mix([float(word) for word in start.split()], [float(word) for word in end.split()], total)
    sources, draws = drawn(order, np.arange(150))
    expected = [source_of(first, last, total, position) for position in range(150)]
    assert list(zip(sources.tolist(), draws.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("start", "end", "total"), SCHEDULES)
def test_numbers_past_64_bits_change_nothing(start, end, total):
    """A position so far away that products need more than 64 bits makes all of a call be calculated in Python's integers."""
    order = mix(start, end, total)
    near = order.at(np.arange(3000)).ids
    assert np.array_equal(order.at(np.append(np.arange(3000), 10**17)).ids[:-1], near)


def test_weights_count_as_written_and_in_any_unit():
    positions = np.arange(10**9, 10**9 + 3000)
    percent = mix([51, 49]).at(positions).ids
    for weights in ([0.51, 0.49], [510, 490], np.array([5.1, 4.9])):
        assert np.array_equal(mix(weights).at(positions).ids, percent)
    assert np.array_equal(mix([0.1, 0.2]).at(positions).ids, mix([1, 2]).at(positions).ids), "0.1 is not a binary number"
    assert np.array_equal(MixOrder([Counting()] * 2, [1, 2], [2, 4], 500).at(positions).ids, mix([1, 2]).at(positions).ids)


@pytest.mark.parametrize("place", range(5))
def test_a_source_without_weight_is_never_drawn(place):
    start, end = [0.3, 0.1, 0.2, 0.4], [0.1, 0.7, 0.1, 0.1]
    sources, _ = drawn(mix([*start[:place], 0, *start[place:]], [*end[:place], 0, *end[place:]], 1500), np.arange(5000))
    assert set(sources.tolist()) == set(range(5)) - {place}


def test_a_weight_that_falls_to_nothing_ends_its_source():
    sources, _ = drawn(mix([1, 0], [0, 1], 1000), np.arange(5000))
    assert set(sources[1000:].tolist()) == {1}
    rng = np.random.default_rng(2)
    for num_sources in range(3, 9):
        for _ in range(20):
            start, end = rng.integers(1, 100, num_sources), rng.integers(1, 100, num_sources)
            end[rng.permutation(num_sources)[: num_sources // 2]] = 0
            total = int(rng.integers(1, 60))
            sources, _ = drawn(mix(start, end, total), np.arange(1000))
            late = np.bincount(sources[total:], minlength=num_sources)[end == 0]
            assert late.max() <= (halvings(num_sources) + 1) // 2


def test_shares_are_the_mean_weights_of_a_stretch():
    order = mix([0.9, 0.1], [0.1, 0.9], 1000)
    assert order.shares(0, 1000) == (0.5, 0.5)
    assert order.shares(1000, 10**12) == (0.1, 0.9)
    assert order.shares(0, 500) == pytest.approx((0.7, 0.3), abs=1e-12)
    assert order.shares(999, 1001) == pytest.approx((0.1002, 0.8998), abs=1e-12)
    assert mix([51, 49]).shares(17, 18) == (0.51, 0.49)


def test_ids_and_epochs_are_those_of_the_sources():
    parts = [SampleOrder(30, 1), SampleOrder(7, 2), SampleOrder(50, 3)]
    order = MixOrder(parts, [2, 1, 1], [2, 1, 1], 1)
    assert order.num_samples == 87
    draws = order.at(np.arange(400))
    for part, offset, end in zip(parts, (0, 30, 37), (30, 37, 87), strict=True):
        own = (draws.ids >= offset) & (draws.ids < end)
        expected = part.at(np.arange(own.sum()))
        assert np.array_equal(draws.ids[own] - offset, expected.ids)
        assert np.array_equal(draws.epochs[own], expected.epochs)


def test_a_mix_may_be_part_of_a_mix():
    inner = MixOrder([SampleOrder(20, 0), SampleOrder(30, 1)], [1, 1], [1, 1], 1)
    outer = MixOrder([inner, SampleOrder(10, 2)], [0.8, 0.2], [0.8, 0.2], 1)
    draws = outer.at(np.arange(1000))
    assert outer.num_samples == 60
    assert np.abs(np.histogram(draws.ids, [0, 20, 50, 60])[0] - [400, 400, 200]).max() <= 1
    assert np.array_equal(draws.ids[draws.ids < 50], inner.at(np.arange(800)).ids)


def test_a_single_source_is_itself():
    order = SampleOrder(13, 5)
    alone = MixOrder([order], [3], [1], 100)
    assert np.array_equal(alone.at(np.arange(50)).ids, order.at(np.arange(50)).ids)
    assert alone.shares(5, 70) == (1.0,)
