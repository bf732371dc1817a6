"""Curves as inline SVG. Only lines are in the picture, which stretches to any width; words and numbers stand around it and keep their size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.report.axes import Axis, log_axis, said, step_axis, value_axis
from trainer.report.markup import Markup, tag
from trainer.report.thinning import Curve

_SIZE = 1000.0
_SPREADS_BEFORE_CLIPPING = 3.0
_MOST_MARKS = 60


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: in the legend.
        curve: its points.
        colour: 1 to 8.
        dots: a point is drawn where it is measured; for curves of few points.
        width: of the stroke, in pixels; a wide one is pale, to be seen behind others.
    """

    label: str
    curve: Curve
    colour: int = 1
    dots: bool = False
    width: float = 1.6


@dataclass(frozen=True)
class Mark:
    """A step at which something happened.

    Attributes:
        step: where.
        kind: ``resume``, a line from top to bottom, or ``bad``, a tick at the bottom.
        text: what happened.
        label: a letter or number that stands at its top.
    """

    step: float
    kind: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        title: above it.
        lines: of one axis.
        kind: of their values (trainer.report.axes.said).
        from_zero: whether the axis begins at 0.
        log: whether it counts powers of ten; values of 0 lie on its lower end.
        stacked: whether each line lies on top of the one before, and the areas are filled.
        marks: in the picture.
        limit: a value to which a dashed line is drawn.
        note: beneath it.
        wide: whether it takes a row for itself.
    """

    title: str
    lines: Sequence[Line]
    kind: str = "number"
    from_zero: bool = False
    log: bool = False
    stacked: bool = False
    marks: Sequence[Mark] = ()
    limit: float | None = None
    note: str = ""
    wide: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return all(line.curve.empty for line in self.lines)


@dataclass
class Drawing:
    """Draws charts over the same steps, and collects the numbers that a pointer reads.

    Attributes:
        steps: first and last of all charts.
    """

    steps: tuple[float, float]
    _rows: list[list[float]] = field(default_factory=list)
    _charts: list[dict[str, object]] = field(default_factory=list)

    def draw(self, chart: Chart) -> Markup | None:
        """A chart; None where there is nothing to draw."""
        lines = [line for line in chart.lines if not line.curve.empty]
        if not lines:
            return None
        axis, beyond = _axis(chart, lines)
        across = step_axis(*self.steps)
        number = len(self._charts)
        self._charts.append({"x": [across.low, across.high], "lines": [self._read_out(chart, line) for line in lines]})
        picture = tag(
            "svg",
            _grid(axis, across),
            (_stack if chart.stacked else _lines)(lines, across, axis),
            _marks(chart.marks, across),
            tag("path", d=f"M0 {_y(axis, chart.limit)}H{_SIZE:.0f}", class_="limit") if chart.limit is not None else None,
            viewBox=f"0 0 {_SIZE:.0f} {_SIZE:.0f}",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"{chart.title} over steps",
        )
        plot = tag("div", picture, _badges(chart.marks, across), tag("i", class_="cursor"), class_="plot", data_chart=number)
        note = ". ".join(part for part in (chart.note, beyond) if part)
        return tag(
            "figure",
            tag("figcaption", tag("b", chart.title), _legend(chart, lines)),
            tag("div", _labels(axis, "top", -1), class_="y"),
            plot,
            tag("div", _labels(across, "left", 1), class_="x"),
            tag("p", note, class_="note") if note else None,
            class_="chart wide" if chart.wide else "chart",
        )

    def data(self) -> Markup:
        """What the pointer reads, for the page's script."""
        text = json.dumps({"steps": self._rows, "charts": self._charts}, separators=(",", ":"), ensure_ascii=True)
        return tag("script", Markup(text.replace("<", "\\u003c")), type="application/json", id="data")

    def _read_out(self, chart: Chart, line: Line) -> list[object]:
        steps = [float(step) if step % 1 else int(step) for step in line.curve.steps]
        if steps not in self._rows:
            self._rows.append(steps)
        values = line.curve.high if chart.log else line.curve.mean
        return [self._rows.index(steps), [said(value, chart.kind) for value in values.tolist()]]


def _axis(chart: Chart, lines: Sequence[Line]) -> tuple[Axis, str]:
    """The axis of values, and a sentence on what lies beyond it."""
    if chart.stacked:
        highs = np.nansum([line.curve.mean for line in lines], axis=0)
        lows = np.zeros(1)
    else:
        highs = np.concatenate([line.curve.high for line in lines])
        lows = np.concatenate([line.curve.low for line in lines])
    if chart.limit is not None:
        highs = np.append(highs, chart.limit)
    highs, lows = highs[np.isfinite(highs)], lows[np.isfinite(lows)]
    if chart.log:
        positive = np.concatenate([lows[lows > 0], highs[highs > 0]])
        return (log_axis(float(positive.min()), float(positive.max())) if positive.size else log_axis(1e-9, 1e-3)), ""
    low, high = float(lows.min()), float(highs.max())
    usual, least = float(np.percentile(highs, 98)), min(low, 0.0) if chart.from_zero else low
    if highs.size >= 20 and high - usual > _SPREADS_BEFORE_CLIPPING * (usual - least) > 0:
        return value_axis(low, usual, chart.kind, chart.from_zero), f"Some points lie higher, up to {said(high, chart.kind)}"
    return value_axis(low, high, chart.kind, chart.from_zero), ""


def _grid(axis: Axis, across: Axis) -> list[Markup]:
    lines = [f"M0 {_y(axis, value)}H{_SIZE:.0f}" for value, _ in axis.ticks]
    return [
        tag("path", d="".join(lines), class_="grid"),
        tag("path", d="".join(f"M{_x(across, v)} {_SIZE:.0f}v-9" for v, _ in across.ticks), class_="grid"),
    ]


def _lines(lines: Sequence[Line], across: Axis, axis: Axis) -> list[Markup]:
    drawn: list[Markup | None] = []
    for line in lines:
        curve, style = line.curve, f"--c:var(--c{line.colour})"
        if (curve.high > curve.low).any() and not axis.log:
            drawn.append(tag("path", d=_band(curve, across, axis), class_="band", style=style))
        values = curve.high if axis.log else curve.mean
        path, alone = _path(curve.steps, values, across, axis)
        wide = "line pale" if line.width > 2 else "line"
        drawn.append(tag("path", d=path, class_=wide, style=f"{style};stroke-width:{line.width:g}px") if path else None)
        points = _dots(curve.steps, values, across, axis) if line.dots else alone
        drawn.append(tag("path", d=points, class_="dot", style=style) if points else None)
    return [path for path in drawn if path]


def _stack(lines: Sequence[Line], across: Axis, axis: Axis) -> list[Markup]:
    """Areas on top of each other; all lines have the same steps."""
    base, drawn = np.zeros(len(lines[0].curve.steps)), []
    for line in lines:
        top = base + np.nan_to_num(line.curve.mean)
        area = _band(Curve(line.curve.steps, base, top, top), across, axis)
        drawn.append(tag("path", d=area, class_="area", style=f"--c:var(--c{line.colour})"))
        base = top
    return drawn


def _path(steps: np.ndarray, values: np.ndarray, across: Axis, axis: Axis) -> tuple[str, str]:
    """The line through values, and the points that have no neighbour to be joined with; both broken where a value is missing."""
    pieces: list[list[str]] = [[]]
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if value != value:
            pieces.append([])
        else:
            pieces[-1].append(f"{_x(across, step)} {_y(axis, value)}")
    line = "".join("M" + "L".join(piece) for piece in pieces if len(piece) > 1)
    return line, "".join(f"M{piece[0]}h0" for piece in pieces if len(piece) == 1)


def _dots(steps: np.ndarray, values: np.ndarray, across: Axis, axis: Axis) -> str:
    return "".join(
        f"M{_x(across, step)} {_y(axis, value)}h0" for step, value in zip(steps.tolist(), values.tolist(), strict=True) if value == value
    )


def _band(curve: Curve, across: Axis, axis: Axis) -> str:
    good = np.isfinite(curve.low) & np.isfinite(curve.high)
    steps = curve.steps[good].tolist()
    upper = [f"{_x(across, step)} {_y(axis, value)}" for step, value in zip(steps, curve.high[good].tolist(), strict=True)]
    lower = [f"{_x(across, step)} {_y(axis, value)}" for step, value in zip(steps, curve.low[good].tolist(), strict=True)]
    return "M" + "L".join([*upper, *lower[::-1]]) + "Z"


def _marks(marks: Sequence[Mark], across: Axis) -> list[Markup]:
    drawn = []
    for kind, shape in (("resume", f"V{_SIZE:.0f}"), ("bad", "v-60")):
        places = [mark.step for mark in marks if mark.kind == kind]
        top = 0 if kind == "resume" else _SIZE
        if places:
            drawn.append(tag("path", d="".join(f"M{_x(across, step)} {top:.0f}{shape}" for step in places), class_=kind))
    return drawn


def _badges(marks: Sequence[Mark], across: Axis) -> list[Markup]:
    """Small labels at the top of marks; one that would cover its neighbour is left out."""
    drawn, before = [], -1.0
    for mark in [mark for mark in marks if mark.label][:_MOST_MARKS]:
        place = across.place(mark.step)
        if place - before >= 0.04:
            drawn.append(tag("span", mark.label, class_="badge", style=f"left:{100 * place:.2f}%", title=mark.text))
            before = place
    return drawn


def _labels(axis: Axis, side: str, sign: int) -> list[Markup]:
    labels = []
    for value, text in axis.ticks:
        place = axis.place(value) if sign > 0 else 1 - axis.place(value)
        at = "" if side == "top" or 0.04 < place < 0.96 else ("first" if place <= 0.04 else "last")
        labels.append(tag("span", text, style=f"{side}:{100 * place:.2f}%", class_=at or None))
    return labels


def _legend(chart: Chart, lines: Sequence[Line]) -> Markup:
    entries = []
    for line in lines:
        finite = line.curve.mean[np.isfinite(line.curve.mean)]
        last = said(float(finite[-1]), chart.kind)
        entries.append(
            tag("span", tag("i", style=f"--c:var(--c{line.colour})"), f"{line.label} ", tag("b", last, data_last=last), class_="key")
        )
    return tag("span", entries, class_="legend")


def _x(across: Axis, step: float) -> str:
    return f"{_SIZE * across.place(step):.1f}".removesuffix(".0")


def _y(axis: Axis, value: float) -> str:
    return f"{_SIZE * (1 - axis.place(value)):.1f}".removesuffix(".0")
