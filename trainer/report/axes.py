"""Numbers as people read them, and where an axis gets its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def said(value: float, kind: str = "number") -> str:
    """A number in words that fit into a line.

    Args:
        value: what.
        kind: number, count, rate, bytes, share or seconds.
    """
    if not math.isfinite(value):
        return "-"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "rate":
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "bytes":
        size, unit = next(((size, unit) for size, unit in _BYTES if abs(value) >= size), (1, "B"))
        return f"{value / size:.3g} {unit}" if abs(value / size) < 1000 else f"{value / size:,.0f} {unit}"
    if kind == "seconds":
        return _duration(value)
    return _number(value)


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}" if abs(value) < 1 else f"{value:.5g}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        for size, unit in ((1, "s"), (1e-3, "ms")):
            if seconds >= size:
                return f"{seconds / size:.3g} {unit}"
        return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers and its ticks.

    Attributes:
        low, high: its ends.
        ticks: (value, text) of each.
        log: whether it counts powers of ten.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 1; beyond the ends at the ends."""
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, max(value, self.low))) if self.log else (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (value - low) / (high - low)))


def step_axis(low: float, high: float) -> Axis:
    """An axis of whole steps, from the first to the last."""
    if high <= low:
        return Axis(low - 1, low + 1, ((low, f"{low:,.0f}"),))
    size = max(1.0, _nice((high - low) / 5))
    ticks = [tick for tick in _multiples(low, high, size) if tick >= 1]
    if low <= 1 and (not ticks or ticks[0] - low > 0.06 * (high - low)):
        ticks = [low, *ticks]
    return Axis(low, high, tuple((tick, _step(tick, high)) for tick in ticks))


def _step(step: float, high: float) -> str:
    return f"{step:,.0f}" if high < 1e5 else counted(step)


def counted(value: float) -> str:
    """A large number with a letter: 1.2 M, 3.4 B."""
    size, letter = next(((size, letter) for size, letter in _LARGE if value >= size), (1, ""))
    return f"{value / size:.3g} {letter}".strip()


def value_axis(low: float, high: float, kind: str, from_zero: bool) -> Axis:
    """An axis of values with room above and below; ``kind`` as in ``said``."""
    low = min(low, 0.0) if from_zero else low
    room = 0.06 * (high - low) or abs(high) * 0.5 or 1.0
    low, high = (low if from_zero and low == 0 else low - room), high + room
    scale, unit = _unit(high, kind)
    size = _nice((high - low) / scale / 5)
    decimals = max(0, -math.floor(math.log10(size) + 1e-9)) if size < 1e6 else 0
    if size < 1e-4:
        texts = {tick: f"{tick:.2g}" for tick in _multiples(low / scale, high / scale, size)}
    else:
        digits = decimals + (1 if round(size * 10**decimals, 6) == 2.5 else 0)
        texts = {tick: f"{tick:,.{digits}f}" for tick in _multiples(low / scale, high / scale, size)}
    return Axis(low, high, tuple((tick * scale, f"{text}{unit}") for tick, text in texts.items()))


def log_axis(low: float, high: float) -> Axis:
    """An axis of powers of ten."""
    first, last = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)
    every = max(1, math.ceil((last - first) / 5))
    return Axis(10.0**first, 10.0**last, tuple((10.0**power, f"1e{power}") for power in range(last, first - 1, -every)), log=True)


def _unit(high: float, kind: str) -> tuple[float, str]:
    """What ticks are counted in."""
    if kind == "share":
        return 0.01, " %"
    if kind == "bytes":
        return next(((float(size), f" {unit}") for size, unit in _BYTES if high >= size), (1.0, " B"))
    if kind == "seconds":
        return next((pair for pair in ((1.0, " s"), (1e-3, " ms")) if high >= pair[0]), (1e-6, " µs"))
    if kind in ("rate", "count") and high >= 1e4:
        return next((size, f" {letter}") for size, letter in _LARGE if high >= size)
    return 1.0, ""


def _nice(size: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(size, 1e-300)))  # neighbours among the smallest floats have no distance
    return next(part * power for part in (1, 2, 2.5, 5, 10) if size <= part * power * (1 + 1e-9))


def _multiples(low: float, high: float, size: float) -> Sequence[float]:
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [round(number * size, 12) if size > 1e-9 else number * size for number in range(first, last + 1)]
