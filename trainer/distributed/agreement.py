"""Small JSON messages between ranks: no pickle, and nothing is read from the device."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store


class Agreement:
    """Exchanges values between all ranks. Every rank must make the same calls in the same order.

    Messages go through gloo and not through the store, because a connection breaks at once when its other end dies, whereas a store
    lets a rank wait for the answer of a dead one until the timeout.

    Args:
        store: the group's store.
        rank: this rank.
        world_size: how many there are; the process group must exist if there are several.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self.store = store
        self.rank = rank
        self.world_size = world_size

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (anything JSON), in rank order, on every rank."""
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return [json.loads(text)]
        sizes = self._gather(torch.tensor([len(text)]))
        padded = bytearray(text.ljust(int(torch.cat(sizes).max())))
        return [json.loads(bytes(part.numpy())) for part in self._gather(torch.frombuffer(padded, dtype=torch.uint8))]

    def from_first(self, value: Any = None) -> Any:
        """Rank 0's ``value`` on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return parts


def told_by(source: int, value: Any, group: dist.ProcessGroup, device: torch.device) -> Any:
    """What rank ``source`` of ``group`` gives for ``value`` (anything JSON), on every rank of it. Waits for the device."""
    text = json.dumps(value).encode()
    size = torch.tensor([len(text)], device=device)
    dist.broadcast(size, group=group, group_src=source)
    data = torch.frombuffer(bytearray(text[: int(size)].ljust(int(size))), dtype=torch.uint8).to(device)
    dist.broadcast(data, group=group, group_src=source)
    return json.loads(bytes(data.cpu().numpy()))
