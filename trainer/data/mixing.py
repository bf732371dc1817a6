"""One stream out of several, in exact proportion: which source each position draws from is a pure function of the position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.types import Draws

if TYPE_CHECKING:
    from trainer.protocols import Order

_isqrt = np.frompyfunc(math.isqrt, 1, 1)


class MixOrder:
    """Draws from several orders with weights that go linearly from ``start`` to ``end``, and stay there.

    A sample's id is its id in its own source plus the ``num_samples`` of all sources before. Source i runs its own epochs: the k-th
    position that falls to it, counted from 0, gets ``parts[i].at(k)``.

    The fixed specification, in whole numbers of any size (docs/decisions/0008-mixing-and-grouping.md says why):

    1. A weight is the decimal number that Python writes for it. ``start`` and ``end`` are each divided by their sum and brought to one
       common denominator D, so that source i has whole numbers a[i] and b[i] with sums D. T is ``total``, or 1 where a = b.
    2. A draw is Z = 2 * T * D units. The quota of source i before position n is its integrated weight,
       Q[i](n) = 2 * T * a[i] * n + (b[i] - a[i]) * n**2 for n <= T, and Q[i](T) + 2 * T * b[i] * (n - T) after it.
       The quota Q of a group of sources is their sum; that of all sources is n * Z.
    3. All sources are one group, whose draw k is position k. A group of sources [lo, hi) with more than one member has a left half,
       [lo, mid) with mid = (lo + hi + 1) // 2, and a right half. L(k) of its first k draws fall to the left half: if its quota passes
       k * Z at position n, Q(n) <= k * Z < Q(n + 1), or n = T - 1 where the quota ends at T without passing it, then, with L for the
       left half's quota, x = L(n) + (L(n + 1) - L(n)) * (k * Z - Q(n)) // (Q(n + 1) - Q(n)) and L(k) = (2 * x + Z) // (2 * Z).
       So draw k falls to the left half as its draw L(k) if L(k + 1) > L(k), else to the right half as its draw k - L(k).
    4. A group with one member is a source.

    L(k + 1) - L(k) is 0 or 1, since a half's quota never grows faster than its group's. Each halving adds a rounding of at most half a
    draw, so the draws of a source before any position differ from its integrated weight by at most h / 2, and in any stretch of
    positions by at most h, where h = ceil(log2(number of sources)): 1 for two sources, 2 for four, 5 for 32. A source whose weight is
    0 at start and end is never drawn. One whose weight falls to 0 at T gets at most (h + 1) // 2 draws after it, none of two sources.

    Args:
        parts: the sources, at least one.
        start, end: their weights at position 0, and from position ``total`` on: finite, not negative, not all 0; in any unit.
        total: positions until ``end`` is reached, at least 1.
    """

    def __init__(self, parts: Sequence[Order], start: Sequence[float], end: Sequence[float], total: int):
        assert len(parts) == len(start) == len(end) and parts and total >= 1, "the config has been checked to name each source's weights"
        self.parts = tuple(parts)
        self.num_samples = sum(part.num_samples for part in parts)
        first, last = _shares(start), _shares(end)
        total = total if first != last else 1
        unit = math.lcm(*(share.denominator for share in (*first, *last)))
        rates = [int(2 * total * unit * share) for share in first]
        bends = [int(unit * (later - earlier)) for earlier, later in zip(first, last, strict=True)]
        # In larger units all is the same, as long as half a draw is a whole number of them; and more fits into 64 bits.
        common = math.gcd(*rates, *bends, total * unit)
        self._draw = 2 * total * unit // common
        self._rates = [0, *accumulate(rate // common for rate in rates)]
        self._bends = [0, *accumulate(bend // common for bend in bends)]
        self._total = total

    def at(self, positions: np.ndarray) -> Draws:
        """The samples at ascending positions (n,) of the stream, and in which of its source's epochs each is."""
        ids, epochs = np.empty((2, positions.size), np.int64)
        offsets = [0, *accumulate(part.num_samples for part in self.parts)]
        for source, places, draws in self._deal(0, len(self.parts), np.arange(positions.size), positions):
            found = self.parts[source].at(draws)
            ids[places] = found.ids + offsets[source]
            epochs[places] = found.epochs
        return Draws(ids, epochs)

    def shares(self, begin: int, end: int) -> tuple[float, ...]:
        """Each source's mean weight over positions ``begin`` up to ``end`` - 1; they add up to 1."""
        assert 0 <= begin < end, "a stretch of the stream"
        quotas = [self._quota(source, source + 1) for source in range(len(self.parts))]
        return tuple(float(Fraction(quota.before(end) - quota.before(begin), (end - begin) * self._draw)) for quota in quotas)

    def _deal(self, lo: int, hi: int, places: np.ndarray, draws: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (source, places, its own draws) of those sources of [lo, hi) to which some of the group's draws (n,) fall."""
        if not draws.size:
            return
        if hi - lo == 1:
            yield lo, places, draws
            return
        if (np.diff(draws) == 1).all():
            counts = self._left(lo, hi, np.arange(draws[0], draws[-1] + 2))
            before, after = counts[:-1], counts[1:]
        else:
            before, after = self._left(lo, hi, draws), self._left(lo, hi, draws + 1)
        left = after > before
        mid = (lo + hi + 1) // 2
        yield from self._deal(lo, mid, places[left], before[left])
        yield from self._deal(mid, hi, places[~left], (draws - before)[~left])

    def _left(self, lo: int, hi: int, draws: np.ndarray) -> np.ndarray:
        """L of the specification: how many of the group's first k draws fall to its left half, for each k of int64 (n,)."""
        group, half = self._quota(lo, hi), self._quota(lo, (lo + hi + 1) // 2)
        # No product below exceeds one of these two; past 64 bits, NumPy calculates with Python's integers.
        fits = 8 * self._draw * max(int(draws[-1]), self._draw * (len(self.parts) + 2)) < 1 << 63
        units = (draws if fits else draws.astype(object)) * self._draw
        tick = group.place(units)
        passed = half.before(tick) + half.step(tick) * (units - group.before(tick)) // group.step(tick)
        return ((2 * passed + self._draw) // (2 * self._draw)).astype(np.int64)

    def _quota(self, lo: int, hi: int) -> _Quota:
        return _Quota(self._rates[hi] - self._rates[lo], self._bends[hi] - self._bends[lo], self._total)


@dataclass(frozen=True)
class _Quota:
    """The integrated weight of a group of sources: ``rate * n + bend * n**2`` units before position n, and straight on after ``total``.

    Arrays hold whole numbers, as int64 or, where these are too small, as Python's integers (dtype object).
    """

    rate: int
    bend: int
    total: int

    @property
    def _last_rate(self) -> int:
        return self.rate + 2 * self.total * self.bend

    def before(self, n: Any) -> Any:
        """Units before position n, a whole number or an array of them."""
        curved = np.minimum(n, self.total) if isinstance(n, np.ndarray) else min(n, self.total)
        return curved * (self.rate + self.bend * curved) + (n - curved) * self._last_rate

    def step(self, n: np.ndarray) -> np.ndarray:
        """Units of position n itself."""
        return np.where(n < self.total, self.rate + self.bend * (2 * np.minimum(n, self.total) + 1), self._last_rate)

    def place(self, units: np.ndarray) -> np.ndarray:
        """The position that passes each number of units: the last before which there are no more; the last of all if none passes it."""
        full = self.before(self.total)
        straight = self.total + (units - full) // self._last_rate if self._last_rate else np.full_like(units, self.total - 1)
        return np.where(units < full, self._curved_place(np.minimum(units, full - 1)), straight)

    def _curved_place(self, units: np.ndarray) -> np.ndarray:
        """The same before ``total``: the root of a quadratic, rounded down without leaving whole numbers."""
        if not self.bend:
            return units // self.rate
        square = self.rate**2 + 4 * self.bend * units.astype(object)
        if self.bend > 0:
            root = (_isqrt(square) - self.rate) // (2 * self.bend)
        else:
            root = (self.rate - 1 - _isqrt(square - 1)) // (-2 * self.bend)  # isqrt(x - 1) + 1 is the square root rounded up
        return root.astype(units.dtype)


def _shares(weights: Sequence[float]) -> list[Fraction]:
    """Weights as exact shares of their sum: of the decimal number that is written, not of the binary one next to it."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    assert min(exact) >= 0 < sum(exact), "the config has been checked to have weights"
    return [weight / sum(exact) for weight in exact]
