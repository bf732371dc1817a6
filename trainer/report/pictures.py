"""Which pictures a run is worth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainer.report.chart import Chart, Drawing, Line, Mark
from trainer.report.folder import Run, step_of
from trainer.report.history import History
from trainer.report.markup import Markup
from trainer.report.page import PHASE_NAMES
from trainer.report.thinning import Curve

_MOST_PARTS = 8
_SHORT = {"forward_backward": "forward-backward", "optimizer": "optimizer", "data": "data", "rest": "rest"}


def pictures(run: Run) -> tuple[list[Markup | None], Markup]:
    """The charts of a run, and the numbers behind them."""
    drawing = Drawing(span([run.history]))
    drawn = [drawing.draw(chart) for chart in _charts(run)]
    return drawn, drawing.data()


def span(histories: list[History]) -> tuple[float, float]:
    """First and last step of all of them."""
    firsts = [step_of(history.first) for history in histories if history.first]
    return (float(min(firsts, default=0)), float(max((step_of(history.last) for history in histories), default=0)))


def resumes(run: Run) -> list[Mark]:
    """Where a session went on from what the one before had done."""
    return [
        Mark(session.first, "resume", f"session {number}: {session.layout} from step {session.first:,}", str(number))
        for number, session in enumerate(run.sessions, 1)
        if number > 1 and session.first < step_of(run.history.last)
    ][-200:]


def thinning_note(history: History) -> str:
    """How curves were thinned; nothing where they were not."""
    lines = history.train.lines_per_point
    if lines == 1:
        return ""
    return f"Each point of a curve stands for {lines:,} steps: the line is their mean, the band reaches from the least to the most."


def _charts(run: Run) -> Iterator[Chart]:
    history, marks = run.history, resumes(run)
    column = history.train.curve
    bad = [Mark(step, "bad", f"step {step}") for step in history.left_out_steps]
    strange = [Mark(step, "bad", f"step {step}") for step, name, _ in history.nonfinite if name == "loss"]
    losses = [Line("train", column("loss"))]
    if "loss" in history.held_out:
        losses.append(Line("held out", history.held_out["loss"].curve("loss"), 2, dots=True))
    told = "Red ticks: steps whose loss was not finite" if strange else ""
    yield Chart("Loss", losses, marks=[*marks, *strange], wide=True, note=told)
    yield from _held_out(history, marks)
    told = "Red ticks: updates that were not applied" if bad else ""
    yield Chart("Gradient norm", [Line("before clipping", column("grad_norm"))], from_zero=True, marks=[*marks, *bad], note=told)
    yield Chart("Learning rate", [Line("", column("lr"))], from_zero=True, marks=marks)
    speeds = [Line(run.unit, column("tokens_per_second"))]
    slots = column("slots_per_second")
    if not np.allclose(slots.mean, speeds[0].curve.mean, rtol=0.02, equal_nan=True):
        speeds.insert(0, Line("slots", slots, 3))
    yield Chart("Speed, per second", speeds, "rate", from_zero=True, marks=marks)
    yield Chart("Peak memory", [Line("rank 0", column("peak_memory_bytes"), 4)], "bytes", from_zero=True, marks=marks)
    yield Chart("Model FLOPs utilization", [Line("of the peak", column("mfu"), 3)], "share", from_zero=True, marks=marks)
    yield Chart("Pipeline bubble", [Line("of a step", column("bubble"), 2)], "share", from_zero=True, marks=marks)
    phases = {phase: column(f"seconds.{phase}") for phase in _SHORT}
    if not phases["forward_backward"].empty:
        lines = [Line(_SHORT[phase], curve, PHASE_NAMES[phase][1]) for phase, curve in phases.items()]
        yield Chart("Time of a step", lines, "seconds", from_zero=True, stacked=True, marks=marks)


def _held_out(history: History, marks: list[Mark]) -> Iterator[Chart]:
    """One chart per held-out metric but the whole loss, with a line for each source of a mix."""
    metrics: dict[str, dict[str, Curve]] = {}
    for name, thinned in history.held_out.items():
        part, _, metric = name.rpartition("/")
        metrics.setdefault(metric, {})[part] = thinned.curve(name)
    for metric, parts in metrics.items():
        own = {part: curve for part, curve in parts.items() if part or metric != "loss"}
        if own:
            lines = [
                Line(part or ("all" if len(own) > 1 else ""), curve, 2 + number % 7, dots=True)
                for number, (part, curve) in enumerate(list(own.items())[:_MOST_PARTS])
            ]
            left = f"The first {_MOST_PARTS} of {len(own)} sources" if len(own) > _MOST_PARTS else ""
            yield Chart(f"Held out: {metric}", lines, marks=marks, note=left)
