"""What a user watches: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.types import Evaluation, StepRecord

SECONDS_BETWEEN_LINES = 5.0
NARROWEST_FOR_ALL = 72
"""Columns of a terminal below which a bar would push numbers out of sight."""


class ProgressBar:
    """A live bar with loss, targets per second and remaining time.

    Args:
        console: where it is drawn.
        steps: of the whole run.
        done: before this session.
        unit: what a target is: tokens, samples ...
    """

    def __init__(self, console: Console, steps: int, done: int, unit: str = "tokens"):
        wide = console.width >= NARROWEST_FOR_ALL
        columns = (
            (TextColumn("[bold]step"), MofNCompleteColumn()),
            (BarColumn(bar_width=None),) if wide else (),
            (TextColumn("loss [bold]{task.fields[loss]}[/]" + ("  {task.fields[speed]}" if wide else "")),),
            (TimeElapsedColumn(),) if wide else (),
            (TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)),
        )
        self._progress = Progress(*chain.from_iterable(columns), console=console, expand=wide, speed_estimate_period=60)
        self._unit = unit
        self._task = self._progress.add_task("train", total=steps, completed=done, loss="…", speed="")

    def on_log(self, records: list[StepRecord]) -> None:
        """Moves the bar."""
        self._progress.start()  # only now: what comes before the first steps may end the run and must leave the terminal as it was
        last = records[-1]
        _warn_of_skipped(self._progress.console, records)
        self._progress.update(self._task, completed=last.step, loss=f"{last.loss:.4f}", speed=_speed(last, self._unit))

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """Prints the held-out metrics above the bar."""
        self._progress.console.print(evaluation_line(evaluation))

    def on_save(self, step: int, folder: str) -> None:
        """Prints where the checkpoint is."""
        self._progress.console.print(f"[dim]checkpoint {folder}[/]", highlight=False, soft_wrap=True)

    def on_end(self) -> None:
        """Leaves the bar as it stands."""
        self._progress.stop()


class PlainLines:
    """One line every few seconds, for logs and pipes.

    Args:
        console: where they are printed.
        steps: of the whole run.
        unit: what a target is: tokens, samples ...
    """

    def __init__(self, console: Console, steps: int, unit: str = "tokens"):
        self._console = console
        self._steps = steps
        self._unit = unit
        self._printed = 0.0

    def on_log(self, records: list[StepRecord]) -> None:
        """Prints the last step, unless a line was printed a moment ago."""
        last = records[-1]
        _warn_of_skipped(self._console, records)
        now = time.monotonic()
        if now - self._printed < SECONDS_BETWEEN_LINES and last.step < self._steps:
            return
        self._printed = now
        self._console.print(
            f"step {last.step}/{self._steps}  loss {last.loss:.4f}  grad norm {last.grad_norm:.3f}  lr {last.lr:.2e}  {_speed(last, self._unit)}",
            highlight=False,
            soft_wrap=True,
        )

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """Prints the held-out metrics."""
        self._console.print(evaluation_line(evaluation), highlight=False, soft_wrap=True)

    def on_save(self, step: int, folder: str) -> None:
        """Prints where the checkpoint is."""
        self._console.print(f"checkpoint {folder}", highlight=False, soft_wrap=True)

    def on_end(self) -> None:
        """Nothing is left open."""


def _speed(record: StepRecord, unit: str) -> str:
    waited = "" if record.bubble is None else f"  bubble {record.bubble:.0%}"
    used = "" if record.mfu is None else f"  MFU {record.mfu:.1%}"
    return f"{record.tokens_per_second:,.0f} {unit}/s{used}{waited}"


def _warn_of_skipped(console: Console, records: list[StepRecord]) -> None:
    """One line for the steps that were left out."""
    skipped = [record.step for record in records if not record.applied]
    if skipped:
        console.print(
            f"step {', '.join(map(str, skipped))}: the gradient was not finite, and the update was left out (train.nonfinite)",
            highlight=False,
            soft_wrap=True,
        )


def evaluation_line(evaluation: Evaluation) -> str:
    """The held-out metrics in one line."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
    return f"held out at step {evaluation.step}: {values}  ({evaluation.num_targets:,} targets)"
