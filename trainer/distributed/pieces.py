"""Tensors of which this rank holds some boxes, and of them those of which it holds a range of the flattened elements.

Torch's distributed checkpoint knows boxes, one per rank and tensor. Flat ranges, as engines hold that partition flat buffers, are a few boxes of
a row-major tensor; so is a rank's share of query, key and value in one matrix (distributed/fused.py). Each box is a view of the live memory, so
nothing is gathered to be written, and reading fills the engine's own buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], Tensor]
"""The offsets of a box in the whole, and what is in it."""


class Boxes(Tensor):
    """Stands for a whole tensor in a neutral state; only torch's checkpoint planners read it, by the methods with underscores.

    Attributes:
        held: what this rank has of it, live, as the engine keeps it.
        boxes: (offsets, view of ``held``) of each box of the whole.
    """

    held: Tensor
    boxes: Sequence[Box]

    @staticmethod
    def __new__(cls, size: Sequence[int], held: Tensor, boxes: Sequence[Box]) -> Self:
        """Takes the ``size`` of the whole, and what is held of it."""
        self = Tensor._make_wrapper_subclass(cls, torch.Size(size), dtype=held.dtype, device=held.device)
        self.held, self.boxes = held, boxes
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


class Pieces(Boxes):
    """A tensor of which this rank holds a range of the flattened elements.

    Attributes:
        held: these, flat.
        start: where they begin in the flattened whole.
    """

    start: int

    @staticmethod
    def __new__(cls, size: Sequence[int], held: Tensor, start: int) -> Self:
        """Takes the ``size`` of the whole and the live flat range of it that begins at ``start``."""
        found, taken = [], 0
        for offsets, lengths in boxes(tuple(size), start, start + held.numel()):
            part = held.narrow(0, taken, math.prod(lengths)).view(lengths)
            found.append((offsets, part))
            taken += part.numel()
        assert taken == held.numel()
        self = Boxes.__new__(cls, size, held, found)
        self.start = start
        return self


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
