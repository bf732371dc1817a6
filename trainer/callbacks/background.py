"""Trackers in a thread of their own: no network, disk or service can make a step wait, and none can end a run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from trainer.types import Evaluation, StepRecord

LAST_WORDS_SECONDS = 15.0
"""So long the end of a run waits for what is still to be sent."""
_WAITING = 10_000


class Tracker(Protocol):
    """Sends curves somewhere. All but its making happens in the thread, and may take its time or fail."""

    name: str

    def open(self) -> None:
        """Begins, or goes on where the run's last session ended."""
        ...

    def step(self, record: StepRecord) -> None:
        """A training step, the last one of a log interval."""
        ...

    def evaluation(self, evaluation: Evaluation) -> None:
        """One pass over the held-out split."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class Background:
    """A callback that hands everything to a tracker's thread.

    Args:
        tracker: the tracker.
        warn: says a sentence; called once at most, whatever goes wrong.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]):
        self._tracker, self._warn = tracker, warn
        self._waiting: queue.Queue[tuple[Callable[[Any], None], Any] | None] = queue.Queue(_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=tracker.name, daemon=True)
        self._thread.start()

    def on_log(self, records: list[StepRecord]) -> None:
        """The interval's last step; metrics.jsonl has all of them."""
        self._put((self._tracker.step, records[-1]))

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """The held-out metrics."""
        self._put((self._tracker.evaluation, evaluation))

    def on_save(self, step: int, folder: str) -> None:
        """Nothing: checkpoints stay where they are."""

    def on_end(self) -> None:
        """Waits a moment for what is left."""
        self._put(None)
        self._thread.join(LAST_WORDS_SECONDS)
        if self._thread.is_alive():
            self._fail(f"it is not through {LAST_WORDS_SECONDS:.0f} s after the end, and what it still had is left out")

    def _put(self, event: tuple[Callable[[Any], None], Any] | None) -> None:
        try:
            if not self._failed:
                self._waiting.put_nowait(event)
        except queue.Full:
            self._fail(f"it has fallen {_WAITING:,} steps behind")

    def _run(self) -> None:
        try:
            self._tracker.open()
            while (event := self._waiting.get()) is not None and not self._failed:
                send, value = event
                send(value)
            self._tracker.close()
        except Exception as error:  # a tracker's library may raise anything
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"{self._tracker.name} is left out from now on; training goes on, and metrics.jsonl has everything ({why})")
