"""The report of several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.report.axes import counted, said
from trainer.report.chart import Chart, Drawing, Line
from trainer.report.folder import Run, step_of
from trainer.report.history import number
from trainer.report.markup import Child, Markup, rows, tag
from trainer.report.page import curves, footer, page, pill, section
from trainer.report.parity import SAME_LOSS, Parity, Steps, compare, differing
from trainer.report.pictures import span, thinning_note
from trainer.report.single import loss_of, shown

_COLOURS = 8
_MOST_METRICS = 12


@dataclass(frozen=True)
class Comparison:
    """Runs, and how each of them but the first lies to the first.

    Attributes:
        runs: read; at least two.
        names: of them, each one's own.
        parities: of all but the first.
    """

    runs: Sequence[Run]
    names: Sequence[str]
    parities: Sequence[Parity]

    @classmethod
    def of(cls, runs: Sequence[Run], steps: Sequence[Steps]) -> Comparison:
        """Compares runs by their steps."""
        return cls(runs, _names(runs), [compare(steps[0], other) for other in steps[1:]])

    def facts(self) -> dict[str, list[str]]:
        """What is said of each run, by name: lists in the order of the runs."""
        columns: dict[str, list[str]] = {}
        for run in self.runs:
            for name, value in _facts(run):
                columns.setdefault(name, []).append(value)
        columns["beside the first"] = ["", *(parity.verdict for parity in self.parities)]
        return {name: values for name, values in columns.items() if any(value != "-" for value in values)}

    def page(self) -> bytes:
        """The whole file."""
        drawing = Drawing(span([run.history for run in self.runs]))
        drawn = [drawing.draw(chart) for chart in self._charts()]
        thinned = next((note for run in self.runs if (note := thinning_note(run.history))), "")
        return page(
            " beside ".join(self.names),
            tag("div", f"Isotrain: {len(self.runs)} runs beside each other", class_="eyebrow"),
            tag("h1", " · ".join(self.names)),
            tag("div", self._overview(), class_="card first"),
            curves(drawn),
            self._parity(),
            self._differences("What differs in the configuration", [run.config for run in self.runs]),
            self._differences("What differs in the passports", [run.passport for run in self.runs]),
            drawing.data(),
            footer(
                *(
                    f"{name}: {run.history.num_steps:,} lines of {run.history.path}."
                    for name, run in zip(self.names, self.runs, strict=True)
                ),
                thinned,
            ),
        )

    def _overview(self) -> Markup:
        facts = self.facts()
        facts.pop("state", None)
        told: list[tuple[Child, ...]] = []
        for place, (name, run) in enumerate(zip(self.names, self.runs, strict=True)):
            key = tag("span", tag("i", style=f"--c:var(--c{_colour(place)})"), tag("b", name), class_="key")
            told.append((key, pill(run.state[0]), *(values[place] for values in facts.values())))
        return rows(told, ("run", "state", *facts), class_="numbers")

    def _charts(self) -> Iterator[Chart]:
        column = {"Loss": "loss", "Gradient norm": "grad_norm", "Learning rate": "lr", "Speed, per second": "tokens_per_second"}
        column |= {"Peak memory of rank 0": "peak_memory_bytes", "Model FLOPs utilization": "mfu", "Pipeline bubble": "bubble"}
        kinds = {"tokens_per_second": "rate", "peak_memory_bytes": "bytes", "mfu": "share", "bubble": "share"}
        for title, name in column.items():
            yield Chart(title, self._lines(name), kinds.get(name, "number"), from_zero=name != "loss", wide=name == "loss")
            if name == "loss":
                yield from self._apart()
        metrics = dict.fromkeys(name for run in self.runs for name in run.history.held_out)
        for metric in list(metrics)[:_MOST_METRICS]:
            lines = [
                Line(self.names[place], thinned.curve(metric), _colour(place), dots=True, width=self._width(place))
                for place, run in enumerate(self.runs)
                if (thinned := run.history.held_out.get(metric))
            ]
            yield Chart(f"Held out: {metric}", lines)

    def _lines(self, name: str) -> list[Line]:
        return [Line(self.names[n], run.history.train.curve(name), _colour(n), width=self._width(n)) for n, run in enumerate(self.runs)]

    def _width(self, place: int) -> float:
        """Those drawn first are wider, so that equal curves can all be seen."""
        behind = min(len(self.runs), 4) - 1 - place
        return 1.6 + 3.2 * max(0, behind)

    def _apart(self) -> Iterator[Chart]:
        lines = [
            Line(self.names[place], parity.differences.curve("difference"), _colour(place))
            for place, parity in enumerate(self.parities, 1)
            if parity.parts_at is not None
        ]
        note = f"|loss - loss of {self.names[0]}| / loss of {self.names[0]}; what is equal lies at the bottom. Dashed: {SAME_LOSS:g}, the bound in fp32"
        yield Chart("How far losses are apart", lines, log=True, limit=SAME_LOSS, note=note, wide=True)

    def _parity(self) -> Markup:
        told = []
        for name, parity in zip(self.names[1:], self.parities, strict=True):
            apart, worst = parity.largest
            samples = "not on record"
            if parity.other_samples is not None:
                count, first = parity.other_samples
                samples = f"{count:,} steps differ, the first is {first:,}" if count else "equal at every step"
            told.append(
                (
                    name,
                    tag("b", parity.verdict),
                    f"{parity.common:,}",
                    samples,
                    f"{apart:.3g} at step {worst:,}" if worst else "0",
                    _step(parity.parts_at),
                    _step(parity.exceeds_at),
                )
            )
        heads = ("run", "", "common steps", "samples", "largest relative difference", "first other loss", f"first beyond {SAME_LOSS:g}")
        told_of_rounding = (
            "What adds the same numbers in another order rounds otherwise, and training amplifies that from step to step: the less the "
            "smaller the learning rate. Runs that differ in something else part at once."
        )
        table = rows(told, heads)
        return section(
            f"Losses beside those of {self.names[0]}", tag("div", table, tag("p", told_of_rounding, class_="dim"), class_="card")
        )

    def _differences(self, title: str, trees: list[dict[str, Any]]) -> Markup:
        found = differing(trees)
        told = [(key, *(tag("mark", shown(v)) if v != values[0] else shown(v) for v in values)) for key, values in found.items()]
        table = rows(told, ("", *self.names)) if told else tag("p", "Nothing.", class_="dim")
        return section(title, tag("div", table, class_="card"))


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """(Name, value) of what a run is compared by."""
    history, last = run.history, run.history.last
    yield "state", run.state[0]
    yield "layout", run.layout
    yield "precision", str(run.config.get("precision.compute", "-"))
    yield "device", run.device
    yield "steps", f"{step_of(last):,}" + (f" of {run.steps:,}" if run.steps else "")
    yield "loss", loss_of(last) or "-"
    held_out = number(history.evaluation.get("loss"))
    yield "held-out loss", f"{held_out:.4f}" if held_out == held_out else "-"
    yield "tokens", counted(history.tokens)
    yield "per second", f"{history.tokens / history.seconds:,.0f}" if history.seconds else "-"
    yield "time", said(run.seconds, "seconds")
    yield "peak memory", said(number(last.get("peak_memory_bytes")), "bytes")
    yield "MFU", said(number(last.get("mfu")), "share")


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; as they were typed where two are alike."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _colour(place: int) -> int:
    return 1 + place % _COLOURS


def _step(step: int | None) -> str:
    return "-" if step is None else f"{step:,}"
