"""The global gradient norm, right for plain tensors and DTensors over any number of meshes, and clipping by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.distributed.sharding import local_part, num_copies

_EXACT_IN_FP32 = 4096
"""So many squares a CPU adds up in fp32 with an error of its last digit, 1.5e-7; a cast takes longer than the sum."""


def local_squared_norm(held: Iterable[tuple[nn.Parameter, int]], device: torch.device) -> Tensor:
    """This rank's share of the squared 2-norm of all gradients: adding the shares of all ranks gives the whole.

    Each gradient's local part counts once per copy that exists in the world, so it is divided by the number of copies: a plain
    tensor has as many as ranks have it, a DTensor as many as its mesh leaves unsharded times the meshes beside it.

    Args:
        held: parameters, and on how many ranks each or a part of it lies: all, unless there is a pipeline.
        device: of the result.

    Returns:
        A float64 scalar on ``device``.
    """
    groups: dict[tuple[int, torch.device, torch.dtype | None], list[Tensor]] = defaultdict(list)
    for parameter, ranks in held:
        gradient = parameter.grad
        if gradient is None:
            continue
        assert not (isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements)), "a gradient is not reduced yet"
        part = local_part(gradient)
        # A CPU adds up one after the other and loses the last digits of a large tensor in fp32; a GPU adds up in a tree.
        dtype = torch.float64 if part.is_cpu and part.numel() > _EXACT_IN_FP32 else None
        groups[num_copies(gradient, ranks), part.device, dtype].append(part)
    shares = []
    for (copies, _, dtype), gradients in groups.items():
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=dtype)), dtype=torch.float64)
        share = norm.to(device).square()
        shares.append(share / copies if copies > 1 else share)
    return reduce(add, shares) if shares else torch.zeros((), dtype=torch.float64, device=device)


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Multiplies all gradients by min(1, max_norm / (norm + 1e-6)) in place, as torch.nn.utils.clip_grad_norm_ does; no host sync."""
    gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).float()
    for device, group in _by_device(gradients).items():
        torch._foreach_mul_(group, factor.to(device))


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device].append(tensor)
    return groups
