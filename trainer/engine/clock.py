"""How much of its steps a rank is at work, by clocks that nobody has to wait for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STEPS = 32
"""So many steps are remembered, the last ones: a device's events would else pile up between two reads."""


class Clock:
    """Times steps and the work in them: the host's clock for a CPU; on CUDA events in the stream, looked at when they are over.

    Args:
        device: this rank's.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._steps: deque[tuple[tuple[Any, Any], list[tuple[Any, Any]]]] = deque(maxlen=STEPS)
        self._work: list[tuple[Any, Any]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """All of a step, work and waiting."""
        self._work = []
        begun = self._now()
        yield
        self._steps.append(((begun, self._now()), self._work))

    @contextmanager
    def work(self) -> Iterator[None]:
        """A stretch of a step in which the rank does not wait for others."""
        begun = self._now()
        yield
        self._work.append((begun, self._now()))

    def read(self) -> tuple[float, float]:
        """Seconds of work and seconds in all, of the last steps since the last call. Waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        steps = [*self._steps]
        self._steps.clear()
        return sum(_seconds(*span) for _, work in steps for span in work), sum(_seconds(*whole) for whole, _ in steps)

    def _now(self) -> Any:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        return time.perf_counter()


def _seconds(begun: Any, ended: Any) -> float:
    return ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000
