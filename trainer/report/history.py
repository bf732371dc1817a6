"""What ``metrics.jsonl`` tells, read once and then only where it has grown. A line that makes no sense is passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.report.thinning import Thinned

PHASES = ("data", "forward_backward", "optimizer")
COLUMNS = (
    "loss",
    "grad_norm",
    "lr",
    "tokens_per_second",
    "slots_per_second",
    "mfu",
    "peak_memory_bytes",
    "bubble",
    *(f"seconds.{phase}" for phase in PHASES),
    "seconds.rest",
)
"""What is kept of a training step; ``seconds.rest`` is what the phases leave of it."""
MOST_SAMPLES = 16
MOST_NAMED = 100
MOST_METRICS = 60
_LONGEST_TEXT = 3000
_LARGEST = 1e300


@dataclass
class Written:
    """What a model wrote at some step.

    Attributes:
        step: after which.
        pairs: (what it was given or should have written, what it wrote).
        prompted: whether the first of a pair was given; else it is what should have been written.
    """

    step: int
    pairs: list[tuple[str, str]]
    prompted: bool


class Samples:
    """Texts over time, evenly thinned, the last one always among them."""

    def __init__(self) -> None:
        self._kept: list[Written] = []
        self._every, self._seen = 1, 0
        self._last: Written | None = None

    def add(self, written: Written) -> None:
        """Appends what was written."""
        self._last = written
        if self._seen % self._every == 0:
            self._kept.append(written)
        self._seen += 1
        if len(self._kept) > MOST_SAMPLES:
            self._every *= 2
            self._kept = self._kept[::2]

    def newest_first(self) -> list[Written]:
        """What is kept."""
        kept = self._kept if self._last is None or self._kept[-1] is self._last else [*self._kept, self._last]
        return kept[::-1]


@dataclass
class History:
    """The lines of a run so far.

    Attributes:
        path: the file.
        train: the columns of ``COLUMNS``.
        held_out: each metric of the evaluations.
        samples: what the model wrote.
        num_steps: training steps on record.
        first, last: training lines.
        evaluation: the last one.
        ranks: the last line of kind ``ranks``.
        tokens: targets trained on.
        seconds: that the steps took, evaluation and saving left out.
        left_out: how many updates were not applied.
        left_out_steps: the first of them.
        nonfinite: (step, column, value) of the first values that were not finite.
        unread: lines that are no JSON object with a kind and a step.
    """

    path: Path
    train: Thinned = field(default_factory=lambda: Thinned(COLUMNS))
    held_out: dict[str, Thinned] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    num_steps: int = 0
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, Any] | None = None
    tokens: float = 0
    seconds: float = 0.0
    left_out: int = 0
    left_out_steps: list[int] = field(default_factory=list)
    nonfinite: list[tuple[int, str, str]] = field(default_factory=list)
    unread: int = 0
    _offset: int = 0

    def refresh(self) -> None:
        """Reads what was appended, up to its last complete line.

        Raises:
            OSError: the file cannot be read.
        """
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = parse(line)
                if record is None:
                    self.unread += 1
                else:
                    self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        match record["kind"]:
            case "train":
                self._add_step(record)
            case "evaluate":
                self._add_evaluation(record)
            case "sample":
                pairs = [(text(record.get("prompt")), text(record.get("text")))]
                self.samples.add(Written(record["step"], pairs, prompted=True))
            case "ranks":
                self.ranks = record

    def _add_step(self, record: dict[str, Any]) -> None:
        self.num_steps += 1
        self.first = self.first or record
        self.last = record
        seconds = record.get("seconds")
        spent = [number(seconds.get(phase)) for phase in PHASES] if isinstance(seconds, dict) else [math.nan] * len(PHASES)
        targets, speed = number(record.get("num_targets")), number(record.get("tokens_per_second"))
        took = targets / speed if speed > 0 else math.nan
        self.train.add(record["step"], [*(number(record.get(name)) for name in COLUMNS[:8]), *spent, max(0.0, took - sum(spent))])
        self.tokens += targets if math.isfinite(targets) else 0
        self.seconds += took if math.isfinite(took) else 0
        if record.get("applied") is False:
            self.left_out += 1
            self.left_out_steps += [record["step"]] if len(self.left_out_steps) < MOST_NAMED else []
        for column, value in nonfinite(record):
            if len(self.nonfinite) < MOST_NAMED:
                self.nonfinite.append((record["step"], column, value))

    def _add_evaluation(self, record: dict[str, Any]) -> None:
        self.evaluation = record
        for name, value in record.items():
            if name in ("kind", "step", "num_targets") or math.isnan(number(value)):
                continue
            if name not in self.held_out and len(self.held_out) < MOST_METRICS:
                self.held_out[name] = Thinned([name])
            if name in self.held_out:
                self.held_out[name].add(record["step"], [number(value)])
        examples = [example for example in listed(record.get("examples")) if isinstance(example, dict)]
        if examples:
            pairs = [(text(example.get("reference")), text(example.get("written"))) for example in examples[:3]]
            self.samples.add(Written(record["step"], pairs, prompted=False))


def parse(line: bytes) -> dict[str, Any] | None:
    """A line's record; None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = (
        isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int and 0 <= record["step"] < 2**53
    )
    return record if good else None


def number(value: Any) -> float:
    """A number of a file as a float; NaN for what is none, or is so large that an axis around it would be beyond all floats."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)
    return math.nan


def listed(value: Any) -> list[Any]:
    """A list of a file; an empty one for what is none."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """A text of a file, cut where it is very long."""
    whole = value if isinstance(value, str) else ""
    return whole if len(whole) <= _LONGEST_TEXT else f"{whole[:_LONGEST_TEXT]} …"


def nonfinite(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(column, value) of each number of a line that was not finite."""
    named = record.get("nonfinite")
    for column, value in named.items() if isinstance(named, dict) else ():
        if column in ("loss", "grad_norm"):
            yield column, str(value)
