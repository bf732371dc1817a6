"""Requests to stop: signals and callbacks, agreed between ranks for a step ahead, without reading the device.

A rank that was asked to stop names, before it starts the next log step, that step in the store. Every rank looks into the store right
after that step's device read, which cannot have finished before the asking rank had entered the step. So all ranks see the same answer,
however far a host may run ahead of its GPU in between.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from torch.distributed import Store

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0


class StopRequest:
    """Collects requests to stop and brings all ranks to the same step.

    Args:
        store: the group's store.
    """

    def __init__(self, store: Store):
        self._store = store
        self._reason: str | None = None
        self._asked_at = 0.0
        self._proposed = False

    def listen(self) -> None:
        """Turns SIGTERM, SIGINT and SIGUSR1 into requests. One repeated within 5 s is the same; a later one ends the process at once."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def request(self, reason: str) -> None:
        """Asks for a stop after the next log step."""
        if self._reason is None:
            self._reason, self._asked_at = reason, time.monotonic()

    def propose(self, log_step: int) -> None:
        """To be called before each step with the next log step: names it in the store if this rank was asked to stop."""
        if self._reason is not None and not self._proposed:
            self._store.compare_set("stop", "", f"{log_step} {self._reason}")
            self._proposed = True

    def agreed(self, log_step: int) -> str | None:
        """Why to stop now; None to go on. To be called by every rank right after it has read the device at ``log_step``."""
        if not self._store.check(["stop"]):
            return None
        step, reason = self._store.get("stop").decode().split(" ", 1)
        return reason if int(step) <= log_step else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None and time.monotonic() - self._asked_at > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.request(signal.Signals(number).name)
