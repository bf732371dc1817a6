"""What a rank's steps are spent with, by clocks that nobody has to wait for."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

STEPS = 32
"""So many steps are remembered, the last ones: a device's events would else pile up between two reads."""


class Span:
    """Times what is done inside; what fails is not counted. A class: a generator would take longer than what is done here.

    Args:
        name: of the stretch.
        now: looks at the clock.
        spans: where it is noted.
    """

    __slots__ = ("_begun", "_name", "_now", "_spans")

    def __init__(self, name: str, now: Callable[[], Any], spans: list[tuple[str, Any, Any]]):
        self._name, self._now, self._spans = name, now, spans

    def __enter__(self) -> None:
        self._begun = self._now()

    def __exit__(self, failed: type[BaseException] | None, *more: object) -> None:
        if failed is None:
            self._spans.append((self._name, self._begun, self._now()))


class Clock:
    """Times steps and what is done in them: the host's clock for a CPU; on CUDA events in the stream, looked at when they are over.

    Args:
        device: this rank's.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._steps: deque[list[tuple[str, Any, Any]]] = deque(maxlen=STEPS)
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """All of a step, waiting included; one that fails is not counted."""
        self._spans = []
        with self.span("step"):
            yield
        self._steps.append(self._spans)

    def span(self, name: str) -> Span:
        """A stretch of a step."""
        return Span(name, self._now, self._spans)

    def read(self) -> tuple[int, dict[str, float]]:
        """The number of steps since the last call, or ``STEPS`` if there were more, and their seconds by name. Waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        steps, seconds = [*self._steps], defaultdict[str, float](float)
        self._steps.clear()
        for name, begun, ended in chain.from_iterable(steps):
            seconds[name] += ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000
        return len(steps), seconds

    def _now(self) -> Any:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        return time.perf_counter()
