"""Embedding and head of which each rank of the tensor axis holds the rows of some words; swapped in place by class, like the dense head.

The likelihood needs the largest logit and the sum of exponentials over all words, not the logits: two small all-reduces per micro-batch
(Shoeybi et al., 2019, Megatron-LM, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from trainer.distributed.sharding import local_index
from trainer.model.chunked import ChunkedLikelihood, own_columns
from trainer.model.head import DenseHead, keep_hits
from trainer.types import IGNORE


class ShardedEmbedding(nn.Embedding):
    """Looks up the words whose rows lie here; a sum over the ranks brings the others'."""

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (..., H) of ``ids`` (...), whole on every rank."""
        rows, first, _ = _own(self.weight)
        places = ids - first
        here = (places >= 0) & (places < rows.size(0))
        found = F.embedding(places.clamp(0, rows.size(0) - 1), rows)
        if self.padding_idx is not None:
            found = torch.where((ids == self.padding_idx)[..., None], found.detach(), found)
        mesh = self.weight.device_mesh  # type: ignore[attr-defined]
        summed = DTensor.from_local(found * here[..., None], mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()])
        return summed.to_local()


def sharded(kind: type[nn.Embedding]) -> type[nn.Embedding]:
    """The form of a class of embeddings that looks words up in split rows; what the class does with them beside (BART and Gemma scale) stays."""
    return ShardedEmbedding if kind is nn.Embedding else type(f"Sharded{kind.__name__}", (kind, ShardedEmbedding), {})


class ShardedHead(DenseHead):
    """A linear head whose vocabulary is spread over the tensor axis: no rank ever has all logits, unless they are asked for."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), gathered; or, inside ``asking``, negative log-likelihoods (N,) of all slots in fp32, 0 where the label is -100."""
        mesh: DeviceMesh = self.weight.device_mesh  # type: ignore[attr-defined]
        # Each rank's gradient with respect to what it was given is a part of the whole: to be summed.
        hidden = DTensor.from_local(hidden, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
        rows, first, size = _own(self.weight)
        bias = None if self.bias is None else _own(self.bias)[0]
        asked = self.asked
        if asked is None:
            logits = F.linear(hidden, rows, bias)
            shape = torch.Size((*logits.shape[:-1], size))
            gathered = DTensor.from_local(logits, mesh, [Shard(logits.ndim - 1)], run_check=False, shape=shape, stride=_strides(shape))
            return gathered.full_tensor()
        added = None if asked.bias is None else asked.bias[:, first : first + rows.size(0)]
        labels = asked.labels.flatten()
        hits: list[Tensor] = []
        look = None if self.training else lambda logits, labels: hits.append(_hits(logits, labels, first, mesh.get_group()))
        if self.chunk is None:
            logits = F.linear(hidden, rows, bias)
            flat = (logits if added is None else logits + added).flatten(0, -2).float()
            if look:
                look(flat.detach(), labels)
            nll = _Likelihood.apply(flat, labels, first, mesh.get_group())
        else:
            own = hidden.flatten(0, -2)
            nll = ChunkedLikelihood.apply(own, rows, bias, added, labels, self.chunk, first, mesh.get_group(), look)
        if look:
            keep_hits(asked, hits)
        return nll


class _Likelihood(torch.autograd.Function):
    """Negative log-likelihood of labels (N,) under logits of which each rank has some columns (N, V_local)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, first: int, group: ProcessGroup) -> Tensor:
        largest = logits.max(-1).values
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        shifted = logits - largest[:, None]
        places, here = own_columns(labels, first, logits.size(-1))
        own = shifted.gather(-1, places).squeeze(-1) * here
        exponentials = shifted.exp()
        sums = torch.stack([exponentials.sum(-1), own])
        dist.all_reduce(sums, group=group)
        counts = labels != IGNORE
        ctx.save_for_backward(exponentials / sums[0, :, None], places, here, counts)
        return (sums[0].log() - sums[1]) * counts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        shares, places, here, counts = ctx.saved_tensors
        from_labels = torch.zeros_like(shares).scatter_(-1, places, here[:, None].to(shares.dtype))
        return (shares - from_labels) * (gradients[0] * counts)[:, None], None, None, None


def _hits(logits: Tensor, labels: Tensor, first: int, group: ProcessGroup) -> Tensor:
    """Whether each label is the likeliest word; of equally likely ones the first, as argmax has it."""
    best = logits.max(-1)
    found = torch.stack([best.values.double(), (best.indices + first).double()])
    of_ranks = [torch.empty_like(found) for _ in range(dist.get_world_size(group))]
    dist.all_gather(of_ranks, found, group=group)
    values, words = torch.stack(of_ranks).unbind(1)
    return words.gather(0, values.argmax(0, keepdim=True)).squeeze(0) == labels


def _own(parameter: Tensor) -> tuple[Tensor, int, int]:
    """The rows that lie here, where they begin, and how many there are in all."""
    assert isinstance(parameter, DTensor)
    index = local_index(parameter)
    assert index is not None
    return parameter.to_local(), index[0].start, parameter.size(0)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
