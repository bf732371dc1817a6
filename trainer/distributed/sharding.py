"""Which part of a DTensor lies on this rank, and how often it exists."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.distributed.pieces import Boxes, Pieces


def local_index(tensor: Tensor) -> tuple[slice, ...] | None:
    """The slices of the full tensor that this rank holds; None for a plain tensor: all of it."""
    if not isinstance(tensor, DTensor):
        return None
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def local_part(tensor: Tensor) -> Tensor:
    """The local tensor of a DTensor, flat where only a range is held; a plain tensor itself."""
    if isinstance(tensor, Boxes):
        tensor = tensor.held
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_copies(tensor: Tensor, world_size: int) -> int:
    """How many ranks hold the same local part as this one."""
    if isinstance(tensor, Pieces):
        return 1
    if isinstance(tensor, Boxes):
        tensor = tensor.held
    if not isinstance(tensor, DTensor):
        return world_size
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return world_size // math.prod(size for placement, size in sizes if not placement.is_replicate())  # strided shards are no Shard
