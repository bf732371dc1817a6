"""Likelihoods under a linear head whose logits exist for some slots at a time, in the forward and, computed again, in the backward.

What comes back for a slot is not known in the forward: objectives weigh terms and divide them by counts over the global batch. So nothing of the
gradient can be made there, and nothing of the size of the logits needs to be kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.types import IGNORE


class ChunkedLikelihood(torch.autograd.Function):
    """Negative log-likelihood (N,) in fp32 of labels (N,) under a head of which this rank has all words, or those from ``first`` on."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        labels: Tensor,
        size: int,
        first: int = 0,
        group: dist.ProcessGroup | None = None,
        look: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """The likelihoods.

        Args:
            ctx: for the backward.
            hidden: (N, H).
            weight: (V, H).
            bias: (V,).
            added: (1, V), a constant added to the logits.
            labels: -100 where there is no target.
            size: so many slots have logits at a time.
            first: the number of this rank's first word.
            group: the ranks that have the other words; None: there are none.
            look: is given the logits in fp32 and the labels of some slots at a time.
        """
        nll, largest, log_sums = (torch.empty(labels.shape, dtype=torch.float32, device=labels.device) for _ in range(3))
        for rows in _chunks(len(labels), size):
            logits = _logits(hidden[rows], weight, bias, added)
            if look:
                look(logits, labels[rows])
            nll[rows], largest[rows], log_sums[rows] = _likelihoods(logits, labels[rows], first, group)
            del logits  # before there are the next ones
        ctx.save_for_backward(hidden, weight, bias, added, labels, largest, log_sums)
        ctx.size, ctx.first = size, first
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to hidden states, weight and bias; of the last two those of this rank's words, added up in fp32."""
        hidden, weight, bias, added, labels, largest, log_sums = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
        gradient = gradient * (labels != IGNORE)
        for rows in _chunks(len(labels), ctx.size):
            logits = _logits(hidden[rows], weight, bias, added)
            slopes = logits.sub_(largest[rows, None]).sub_(log_sums[rows, None]).exp_()
            del logits
            places, here = own_columns(labels[rows], ctx.first, len(weight))
            slopes.scatter_add_(-1, places, -here[:, None].to(slopes.dtype)).mul_(gradient[rows, None])
            slopes = slopes.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[rows] = slopes @ weight
            if of_weight is not None:
                _add_product(of_weight, slopes.t(), hidden[rows])
            if of_bias is not None:
                of_bias += slopes.sum(0, dtype=torch.float32)
            del slopes
        # Those of parameters in the parameters' type.
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            *[None] * (len(wanted) - 3),
        )


def _chunks(number: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, number, size))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None) -> Tensor:
    """Fresh logits in fp32, as the dense head rounds them: in the type of ``hidden`` first."""
    logits = F.linear(hidden, weight, bias).float()
    return logits if added is None else logits.add_(added)


def _likelihoods(logits: Tensor, labels: Tensor, first: int, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihoods, each slot's largest logit, and the logarithm of its sum of exponentials beyond that; spends ``logits``."""
    places, here = own_columns(labels, first, logits.size(-1))
    largest = _over_ranks(logits.max(-1).values, dist.ReduceOp.MAX, group)
    shifted = logits.sub_(largest[:, None])
    own = shifted.gather(-1, places).squeeze(-1) * here
    sums, own = _over_ranks(torch.stack([shifted.exp_().sum(-1), own]), dist.ReduceOp.SUM, group)
    log_sums = sums.log()
    return (log_sums - own) * (labels != IGNORE), largest, log_sums


def own_columns(labels: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """The column (n, 1) of each label among this rank's words, and whether (n,) it is among them."""
    places = labels - first
    here = (places >= 0) & (places < size)
    return places.clamp(0, size - 1)[:, None], here


def _over_ranks(values: Tensor, operation: Any, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(values, operation, group=group)
    return values


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds ``left @ right`` to ``total``, which is fp32 whatever they are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
