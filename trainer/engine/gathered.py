"""Linear layers whose gathered weight goes after the forward, and which round as torch's own do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_TORCHS = F.linear


@contextmanager
def linear_saves_parameters() -> Iterator[None]:
    """Lets every ``torch.nn.functional.linear`` of this process keep its weight for the backward as the parameter that it is.

    Torch keeps a transposed view, which would hold all of ZeRO 3's gathered weights in memory until the backward. DeepSpeed has a linear of
    its own against that, but under bf16 that one rounds once more, before it adds the bias, and stays after the engine is gone.
    """
    F.linear = _linear
    try:
        yield
    finally:
        F.linear = _TORCHS


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in), (out, in) and (out,) or None to (..., out)."""
        ctx.save_for_backward(input, weight)
        return _TORCHS(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of those that want one; the weight is by now gathered again."""
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient.matmul(weight) if of_input else None,
            flat.t().mm(input.reshape(-1, input.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias else None,
        )
