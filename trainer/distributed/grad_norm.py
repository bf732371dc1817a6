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


class Gradients:
    """The gradients of some parameters, in groups of which each needs few calls, found once: a gradient lies as its parameter does.

    Args:
        held: parameters, and on how many ranks each or a part of it lies: all, unless there is a pipeline.
        device: of sums.
    """

    def __init__(self, held: Iterable[tuple[nn.Parameter, int]], device: torch.device):
        self._device = device
        groups: dict[tuple[int, torch.device], list[nn.Parameter]] = defaultdict(list)
        for parameter, ranks in held:
            groups[num_copies(parameter, ranks), parameter.device].append(parameter)
        self._groups = [(copies, where, group) for (copies, where), group in groups.items()]

    def local_squared_norm(self) -> Tensor:
        """This rank's share of the squared 2-norm of all gradients: adding the shares of all ranks gives the whole.

        Each gradient's local part counts once per copy that exists in the world, so it is divided by the number of copies: a plain
        tensor has as many as ranks have it, a DTensor as many as its mesh leaves unsharded times the meshes beside it.

        Returns:
            A float64 scalar.
        """
        shares = []
        for copies, where, group in self._groups:
            if not (gradients := [_reduced(parameter.grad) for parameter in group if parameter.grad is not None]):
                continue
            # A CPU adds up one after the other and loses the last digits of a large tensor in fp32; a GPU adds up in a tree.
            dtype = torch.float64 if where.type == "cpu" else None
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=dtype)), dtype=torch.float64)
            share = norm.to(self._device).square()
            shares.append(share / copies if copies > 1 else share)
        return reduce(add, shares) if shares else torch.zeros((), dtype=torch.float64, device=self._device)

    @torch.no_grad()
    def clip(self, norm: Tensor, max_norm: float) -> None:
        """Multiplies all by min(1, max_norm / (norm + 1e-6)) in place, as torch.nn.utils.clip_grad_norm_ does; no host sync."""
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).float()
        for _, where, group in self._groups:
            if gradients := [local_part(parameter.grad) for parameter in group if parameter.grad is not None]:
                torch._foreach_mul_(gradients, factor.to(where))


def _reduced(gradient: Tensor) -> Tensor:
    assert not (isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements)), "a gradient is not reduced yet"
    return local_part(gradient)
