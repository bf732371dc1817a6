"""Requests to stop: signals and callbacks, agreed between ranks for a step ahead, without reading the device. Free of torch.

A rank that was asked to stop names, before it starts the next log step, that step in the store. Every rank looks into the store right
after that step's device read, which cannot have finished before the asking rank had entered the step. So all ranks see the same answer,
however far a host may run ahead of its GPU in between.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from trainer.distributed.launch import Launch
from trainer.errors import STOPPED

if TYPE_CHECKING:
    from torch.distributed import Store

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0


class Signals:
    """Hears SIGTERM, SIGINT and SIGUSR1 in a thread of its own, and so even while the main thread waits inside of a library.

    Make it once, in the main thread.

    Args:
        on_signal: called with the signal's name; assign another when what a signal means has changed.
    """

    def __init__(self, on_signal: Callable[[str], None]):
        self.on_signal = on_signal
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: None)  # what the system does by default is not wanted
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()

    def _listen(self, reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] in SIGNALS:
                self.on_signal(signal.Signals(number[0]).name)


def listen(launch: Launch) -> Signals:
    """Listens for signals from now on; until they mean something else, one ends the process with a sentence."""
    return Signals(lambda name: end_process(STOPPED, before_training(name), launch.local_rank == 0))


def before_training(name: str) -> str:
    """What is said of a signal that came before there was anything to save."""
    return f"Stopped by {name} before training began; nothing is lost. Run the same command again."


def end_process(code: int, sentence: str, speak: bool) -> NoReturn:
    """Ends the process from any thread, without waiting for anything."""
    if speak:
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
        sys.stderr.write(f"{show_cursor}isotrain: {sentence}\n")
        sys.stderr.flush()
    os._exit(code)


class StopRequest:
    """Collects requests to stop and brings all ranks to the same step.

    Args:
        store: the group's store.
        end_now: ends the process when a signal comes once more, later than a launcher or terminal would repeat it.
    """

    def __init__(self, store: Store, end_now: Callable[[str], None]):
        self._store = store
        self._end_now = end_now
        self._asked_at = 0.0
        self._proposed = False
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Asks for a stop after the next log step. The same within 5 s is the same request."""
        if self.reason is None:
            self.reason, self._asked_at = reason, time.monotonic()

    def on_signal(self, name: str) -> None:
        """A signal is a request; a second one after more than 5 s ends the process at once."""
        if self.reason is not None and time.monotonic() - self._asked_at > SAME_REQUEST_SECONDS:
            self._end_now(name)
        self.request(name)

    def propose(self, log_step: int) -> None:
        """To be called before each step with the next log step: names it in the store if this rank was asked to stop."""
        if self.reason is not None and not self._proposed:
            self._store.compare_set("stop", "", f"{log_step} {self.reason}")
            self._proposed = True

    def agreed(self, log_step: int) -> str | None:
        """Why to stop now; None to go on. To be called by every rank right after it has read the device at ``log_step``."""
        if not self._store.check(["stop"]):
            return None
        step, reason = self._store.get("stop").decode().split(" ", 1)
        return reason if int(step) <= log_step else None
