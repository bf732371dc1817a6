"""Curves of any length in bounded memory: lines that follow each other share a point, which keeps the least, the mean and the most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_POINTS = 1000
"""A picture has hardly more columns of pixels."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class Curve:
    """One column, point by point; NaN where no line of a point has a finite value.

    Attributes:
        steps: the last of each point's.
        low, mean, high: of the values of its lines.
    """

    steps: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not np.isfinite(self.mean).any()


class Thinned:
    """Columns over steps. A point is made of as many lines as every other, a power of two; which ones depends on their number alone.

    Args:
        names: of the columns.
        most: points.

    Attributes:
        lines_per_point: how many share a point.
    """

    def __init__(self, names: Sequence[str], most: int = MOST_POINTS):
        self._names = list(names)
        self._most = most
        self._waiting: list[tuple[float, Sequence[float]]] = []
        self._num_lines = 0
        self.lines_per_point = 1
        columns = len(self._names)
        self._points = np.zeros(0, np.int64)
        self._steps = np.zeros(0)
        self._low, self._high, self._sum, self._count = (np.zeros((0, columns)) for _ in range(4))

    def add(self, step: float, values: Sequence[float]) -> None:
        """Appends a line, one value per column; one that is not finite is none."""
        self._waiting.append((step, values))
        if len(self._waiting) == _AT_ONCE:
            self._fold()

    def curve(self, name: str) -> Curve:
        """The points of a column."""
        self._fold()
        column = self._names.index(name)
        count = self._count[:, column]
        mean = np.divide(self._sum[:, column], count, out=np.full(count.size, np.nan), where=count > 0)
        return Curve(self._steps, self._low[:, column], mean, self._high[:, column])

    def _fold(self) -> None:
        """Makes points of the lines that wait."""
        if not self._waiting:
            return
        steps = np.array([step for step, _ in self._waiting], float)
        values = np.array([values for _, values in self._waiting], float)
        self._waiting.clear()
        values[~np.isfinite(values)] = np.nan
        points = (self._num_lines + np.arange(len(steps))) // self.lines_per_point
        self._num_lines += len(steps)
        self._points = np.concatenate([self._points, points])
        self._steps = np.concatenate([self._steps, steps])
        self._low = np.concatenate([self._low, values])
        self._high = np.concatenate([self._high, values])
        self._sum = np.concatenate([self._sum, np.nan_to_num(values)])
        self._count = np.concatenate([self._count, np.isfinite(values).astype(float)])
        self._join()
        while len(self._points) > self._most:
            self.lines_per_point *= 2
            self._points //= 2
            self._join()

    def _join(self) -> None:
        """Makes one of each row of entries that belong to the same point."""
        last = np.flatnonzero(np.diff(self._points, append=-1))
        first = np.concatenate([[0], last[:-1] + 1])
        self._points, self._steps = self._points[last], self._steps[last]
        self._low, self._high = np.fmin.reduceat(self._low, first), np.fmax.reduceat(self._high, first)
        self._sum, self._count = np.add.reduceat(self._sum, first), np.add.reduceat(self._count, first)
