"""How preparing shows itself on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0
_STEPS_OF_A_BAR = 500


@contextmanager
def progress(title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows how far something is and when it will be done.

    Args:
        title: what is being done.
        total: its size, in any unit.
        quiet: lines even on a terminal.

    Yields:
        A function to call with each piece of work done, in the unit of ``total``.
    """
    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield _Coarse(lambda done: bar.advance(task, done), total // _STEPS_OF_A_BAR).advance
            bar.update(task, completed=total)
    else:
        lines = _Lines(title, total)
        yield lines.advance
        lines.end()


class _Coarse:
    """Passes progress on in pieces of a certain size, because a bar takes longer to move than a short document to read."""

    def __init__(self, advance: Callable[[int], None], size: int):
        self._advance, self._size, self._done = advance, size, 0

    def advance(self, done: int) -> None:
        self._done += done
        if self._done >= self._size:
            self._advance(self._done)
            self._done = 0


class _Lines:
    def __init__(self, title: str, total: int):
        self._title, self._total, self._done = title, max(total, 1), 0
        self._start = self._said = time.monotonic()
        self._say("started")

    def advance(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._start) * max(self._total - self._done, 0) / self._done if self._done else 0
            self._say(f"{min(self._done / self._total, 1):.0%}, {left:.0f} s left")

    def end(self) -> None:
        self._say(f"done in {time.monotonic() - self._start:.1f} s")

    def _say(self, what: str) -> None:
        print(f"{self._title}: {what}", file=sys.stderr, flush=True)
