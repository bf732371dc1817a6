"""The ranks that see different samples: what engines add up and put together over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from trainer.types import LossTerms, Term


class DataRanks:
    """This rank's place among them.

    Args:
        device: this rank's.
        mesh: of all ranks; those that differ on its pipeline or tensor axis see the same samples.
        speaks: whether this rank knows of losses, as the last stage of a pipeline alone does.

    Attributes:
        rank, size: of this rank's samples.
        losses: the loss that each rank added to the last step, on every rank.
    """

    def __init__(self, device: torch.device, mesh: DeviceMesh, speaks: bool):
        self._device = device
        stages, copies = mesh["pipeline"].size(), mesh["tensor"].size()
        self._world_size = dist.get_world_size()
        self.size = self._world_size // (stages * copies)
        self.rank = dist.get_rank() // copies % self.size  # stages are the outermost axis
        self._group = mesh["replicate", "shard"]._flatten("data").get_group() if stages * copies > 1 else None
        self._speaks = speaks and mesh.get_local_rank("tensor") == 0
        self.losses = torch.zeros(self.size, dtype=torch.float64, device=device)
        self._lower, self._higher = self.losses[: self.rank], self.losses[self.rank + 1 :]

    def sum(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; moves them to the device first."""
        if self._device.type == "cuda" and not values.is_cuda:
            values = values.pin_memory()  # else the host could wait until they are copied
        summed = values.to(self._device, non_blocking=True)
        if self.size > 1:
            dist.all_reduce(summed, group=self._group)
        return summed

    def gather(self, values: Tensor) -> Tensor:
        """The data ranks' ``values`` (n, ...) one after the other, on every rank."""
        values = values.to(self._device).contiguous()
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values, group=self._group)
        return torch.cat(gathered)

    def totals(self, local: LossTerms, *more: Tensor) -> tuple[LossTerms, Sequence[Tensor]]:
        """Adds up a step's terms and each rank's own loss over the data ranks, and the scalars ``more`` over all, in one packed all-reduce.

        Returns:
            The terms and ``more``, summed; ``losses`` is set.
        """
        if self._world_size == 1:
            terms = {name: Term(term.sum.double(), term.count_key, term.weight) for name, term in local.items()}
            self.losses = reduce(add, (term.sum for term in terms.values()))[None]
            return terms, more
        sums = torch.stack([term.sum for term in local.values()])
        if not self._speaks:
            sums = torch.zeros_like(sums)
        # This rank's own loss between zeros for the other ranks: added up, each has its place. These make all of it float64.
        packed = torch.cat([sums, *(one[None] for one in more), self._lower, sums.sum(0, keepdim=True), self._higher])
        dist.all_reduce(packed)
        totals, summed, self.losses = packed.split([len(local), len(more), self.size])
        terms = {name: Term(total, term.count_key, term.weight) for total, (name, term) in zip(totals.unbind(), local.items(), strict=True)}
        return terms, summed.unbind()
