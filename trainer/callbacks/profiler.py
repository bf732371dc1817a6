"""A window of steps under torch's profiler, written for every rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.callbacks.config import TrackConfig
from trainer.distributed.log import LOGGER

ROWS = 40
"""Operations in the table beside the trace."""


class Profiler:
    """Watches steps ``first`` to ``last`` on this rank, and writes ``rank-N.steps-A-B.json.gz`` (for Perfetto or chrome://tracing) and a table.

    What fails is said once and left out: a profile is no reason to lose a run.

    Args:
        folder: where to write.
        rank: this one.
        device: of its work.
        first, last: steps; a session that begins inside of them watches from its first step on.
        say: shows a line to the user.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, first: int, last: int, say: Callable[[str], None]):
        self._folder, self._rank, self._device, self._say = folder, rank, device, say
        self._first, self._last = first, last
        self._profile: Any = None
        self._began, self._reached = 0, 0

    @classmethod
    def of(cls, track: TrackConfig, run: Path, rank: int, device: torch.device, say: Callable[[str], None], done: int) -> Profiler:
        """The one that a config asks for, which may be one that never watches; ``done`` steps are behind the session."""
        first = track.profile_from or 1
        last = first + track.profile_steps - 1 if track.profile_from else 0
        if track.profile_from and last <= done:
            say(f"no profile: steps {first} to {last} (track.profile_from) are behind step {done}, from which this session goes on")
        return cls(run / "profile", rank, device, first, last, say)

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around a step."""
        if self._profile is None and self._first <= step <= self._last:
            self._begin(step)
        if self._profile is None:
            yield
            return
        with torch.profiler.record_function(f"step {step}"):
            yield
        self._reached = step
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Writes what has been seen, if anything and if not yet; waits for the device."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        self._first = self._last + 1  # no second window
        name = f"rank-{self._rank}.steps-{self._began}-{self._reached}"
        try:
            profile.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            trace = self._folder / f"{name}.json.gz"
            profile.export_chrome_trace(str(trace))
            order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            table = profile.key_averages().table(sort_by=order, row_limit=ROWS)
            (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        except (OSError, RuntimeError) as error:
            return self._failed(error)
        self._say(f"profile of steps {self._began} to {self._reached}: {self._folder}{os.sep}, to be opened in ui.perfetto.dev")

    def _begin(self, step: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._began = step
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it speaks on the terminal of its own beginning and end
        profile = torch.profiler.profile(activities=activities, record_shapes=True)
        try:
            profile.start()
        except RuntimeError as error:  # another profiler has the device
            self._first = self._last + 1
            return self._failed(error)
        self._profile = profile

    def _failed(self, error: Exception) -> None:
        LOGGER.warning("no profile", exc_info=error)
        self._say(f"no profile of rank {self._rank} (track.profile_from): {error}")
