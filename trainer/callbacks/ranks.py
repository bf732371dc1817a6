"""What each rank has held and how long it has waited for the others: who needs the most memory, and who keeps all waiting."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

WORTH_SAYING = 0.02
"""The share of the time from which on it is said that a rank keeps the others waiting."""


@dataclass(frozen=True)
class RankFigures:
    """One rank's session so far.

    Attributes:
        peak_memory_bytes: the most that it has held (``peak_memory``).
        waited_seconds: that it waited for the others where a step begins, by the clock of the device.
        seconds: of the steps.
    """

    peak_memory_bytes: int
    waited_seconds: float
    seconds: float


@dataclass(frozen=True)
class Ranks:
    """All ranks' figures side by side.

    Attributes:
        peak_memory_bytes, waited_seconds: of each rank, in rank order.
        slowest_rank: the one that waited least, so the one that the others waited for; None where there is one rank.
        kept_waiting: the share of the session's time that the others waited for it, on average, more than it did itself.
    """

    peak_memory_bytes: list[int]
    waited_seconds: list[float]
    slowest_rank: int | None
    kept_waiting: float

    @classmethod
    def gathered(cls, own: RankFigures, gather: Callable[[Any], list[Any]]) -> Ranks:
        """Of every rank's figures; collective.

        Args:
            own: this rank's.
            gather: gives every rank's value on every rank.
        """
        figures = [RankFigures(**each) for each in gather(asdict(own))]
        waited = [each.waited_seconds for each in figures]
        memory = [each.peak_memory_bytes for each in figures]
        if len(figures) == 1:
            return cls(memory, waited, None, 0.0)
        slowest = waited.index(min(waited))
        others = (sum(waited) - waited[slowest]) / (len(waited) - 1)
        return cls(memory, waited, slowest, (others - waited[slowest]) / max(max(each.seconds for each in figures), 1e-9))

    def facts(self) -> dict[str, str]:
        """What of it a user should know, in words."""
        most = max(self.peak_memory_bytes)
        facts = {"memory": f"{most / 2**20:,.0f} MiB at most"}
        if len(self.peak_memory_bytes) > 1:
            least = min(self.peak_memory_bytes)
            facts["memory"] += (
                f" (rank {self.peak_memory_bytes.index(most)}), {least / 2**20:,.0f} at least (rank {self.peak_memory_bytes.index(least)})"
            )
        if self.kept_waiting >= WORTH_SAYING:
            facts["slowest"] = f"rank {self.slowest_rank}: the others waited for it during {self.kept_waiting:.0%} of the time"
        return facts


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: allocated on CUDA, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
