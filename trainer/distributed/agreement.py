"""Small JSON messages between ranks through the store: no pickle, and nothing is read from the device."""

from __future__ import annotations

import json
from typing import Any

from torch.distributed import Store


class Agreement:
    """Exchanges values between all ranks. Every rank must make the same calls in the same order.

    Args:
        store: the group's store.
        rank: this rank.
        world_size: how many there are.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self._calls = 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (anything JSON), in rank order, on every rank. Rank 0 collects, so the store sees O(ranks) calls."""
        self._calls += 1
        key = f"gather/{self._calls}"
        if self.rank > 0:
            self.store.set(f"{key}/{self.rank}", json.dumps(value))
            return json.loads(self.store.get(f"{key}/all"))
        others = [json.loads(self.store.get(f"{key}/{rank}")) for rank in range(1, self.world_size)]
        everything = json.dumps([value, *others])
        if self.world_size > 1:
            self.store.set(f"{key}/all", everything)
        return json.loads(everything)

    def from_first(self, value: Any = None) -> Any:
        """Rank 0's ``value`` on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]
