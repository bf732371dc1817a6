"""Several matrices in one tensor, such as query, key and value in GPT-2's, of which each rank of the tensor axis has its share of every one.

A live tensor's columns are in the order of ranks: first all of rank 0, its queries, keys and values, then all of rank 1. So it is split like any
other tensor, for FSDP, the optimizer and the norm too. A checkpoint has them in the model's own order: all queries, all keys, all values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer.distributed.pieces import Box, Boxes
from trainer.distributed.sharding import local_index, local_part


@dataclass(frozen=True)
class Fused:
    """What is in one tensor.

    Attributes:
        dim: along which the matrices lie side by side, and are split.
        parts: how many they are, all of one size.
        ranks: of the tensor axis.
    """

    dim: int
    parts: int
    ranks: int

    def boxes(self, tensor: Tensor) -> list[Box]:
        """The boxes of the checkpoint's tensor that lie here, as views of the live ``tensor``."""
        index, local = local_index(tensor), local_part(tensor)
        assert index is not None
        here, found = index[self.dim], []
        width = tensor.size(self.dim) // (self.ranks * self.parts)
        for number in range(here.start // width, -(-here.stop // width)) if local.numel() else ():
            start, stop = max(here.start, number * width), min(here.stop, (number + 1) * width)
            rank, part = divmod(number, self.parts)
            offsets = [held.start for held in index]
            offsets[self.dim] = (part * self.ranks + rank - number) * width + start
            found.append((tuple(offsets), local.narrow(self.dim, start - here.start, stop - start)))
        return found

    def neutral(self, tensor: Tensor) -> Boxes:
        """Stands for the checkpoint's tensor; shares memory with the live ``tensor``."""
        return Boxes(tensor.size(), tensor, self.boxes(tensor))

    def whole(self, tensor: DTensor) -> Tensor:
        """The checkpoint's tensor out of the live one. Collective."""
        ordered = tensor.full_tensor().unflatten(self.dim, (self.ranks, self.parts, -1)).transpose(self.dim, self.dim + 1)
        return ordered.flatten(self.dim, self.dim + 2)
