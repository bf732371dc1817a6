"""How threads stand back for what matters more where there is no core for both: in the scheduler, and by resting until somebody waits for them."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

import torch

NICE = 19
"""How far threads stand back in the scheduler."""
SHARE = 0.05
"""Of a core: what a step then loses is less than one notices, and a gigabyte is there within a minute."""


class Pace:
    """Makes a thread rest after each piece of its work.

    Args:
        share: of the time that it may work.
    """

    def __init__(self, share: float):
        self._rest_per_second = 1 / share - 1
        self._hurried = threading.Event()

    def begin(self) -> None:
        """From now on nobody waits for the work."""
        self._hurried.clear()

    def hurry(self) -> None:
        """Somebody waits: a rest ends, and no other begins."""
        self._hurried.set()

    def rest(self, worked: float) -> None:
        """Waits as long as it has to after ``worked`` seconds of CPU time."""
        self._hurried.wait(worked * self._rest_per_second)


def stand_back() -> None:
    """Lets every other thread go first on this thread's core; on Linux, elsewhere it would be the whole process."""
    if sys.platform == "linux":
        with suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)


def pace_beside(ranks: int, on_gpu: bool) -> Pace | None:
    """What a thread of each rank must keep to; None where there is a core for it.

    Niceness does not do: a thread that is ready runs whenever training waits for a moment, for another rank or for memory, and then is in the
    way of what training does next.

    Args:
        ranks: on this machine.
        on_gpu: whether training is done there, and a rank needs one core; else it needs one for each of torch's threads.
    """
    needed = ranks * (1 if on_gpu else torch.get_num_threads())
    return Pace(SHARE) if _cores() < needed + ranks else None


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
