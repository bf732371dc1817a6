"""A tensor of which this rank holds one range of its flattened elements, as engines do that partition flat buffers.

Torch's distributed checkpoint knows boxes, not flat ranges; a range of a row-major tensor is a few boxes. Each is a view of the live
memory, so nothing is gathered to be written, and reading fills the engine's own buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Pieces(Tensor):
    """Stands for a whole tensor in a neutral state; only torch's checkpoint planners read it, by the methods with underscores.

    Attributes:
        held: this rank's elements, flat, live.
        start: where they begin in the flattened whole.
        boxes: (offsets, view of ``held``) of each box of the whole.
    """

    held: Tensor
    start: int
    boxes: list[tuple[tuple[int, ...], Tensor]]

    @staticmethod
    def __new__(cls, size: Sequence[int], held: Tensor, start: int) -> Pieces:
        """Takes the ``size`` of the whole and the live flat range of it that begins at ``start``."""
        self = Tensor._make_wrapper_subclass(cls, torch.Size(size), dtype=held.dtype, device=held.device)
        self.held, self.start, self.boxes = held, start, []
        taken = 0
        for offsets, lengths in boxes(tuple(size), start, start + held.numel()):
            part = held.narrow(0, taken, math.prod(lengths)).view(lengths)
            self.boxes.append((offsets, part))
            taken += part.numel()
        assert taken == held.numel()
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Nothing can be computed with a part of a tensor; ``detach`` changes nothing."""
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} of a tensor of which this rank holds only a part")

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        """One item per box."""
        return [
            WriteItem(
                MetadataIndex(fqn, torch.Size(offsets)),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(_chunk(offsets, part), TensorProperties.create_from_tensor(part), self.size()),
            )
            for offsets, part in self.boxes
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Where the boxes lie."""
        return [_chunk(offsets, part) for offsets, part in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The box that begins where ``index`` says."""
        return next(part for offsets, part in self.boxes if torch.Size(offsets) == index.offset)


def boxes(size: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Splits the elements ``start`` to ``stop`` of a row-major tensor into boxes, in their order: at most 2 * (number of dims) - 1.

    Yields:
        Offsets and lengths, one number per dim.
    """
    if start >= stop:
        return
    if not size:
        yield (), ()
        return
    row = math.prod(size[1:])
    first, last = start // row, stop // row
    head, tail = start % row, stop % row
    if first == last:
        for offsets, lengths in boxes(size[1:], head, tail):
            yield (first, *offsets), (1, *lengths)
        return
    if head:
        for offsets, lengths in boxes(size[1:], head, row):
            yield (first, *offsets), (1, *lengths)
        first += 1
    if first < last:
        yield (first, *(0 for _ in size[1:])), (last - first, *size[1:])
    for offsets, lengths in boxes(size[1:], 0, tail):
        yield (last, *offsets), (1, *lengths)


def _chunk(offsets: Sequence[int], part: Tensor) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), part.size())
