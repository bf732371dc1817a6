"""From a skeleton on meta to a model that trains: every step in its one order, for every engine.

The order is: head → tensor → activation checkpointing → compile → shard → fill → replicate → optimizer. What changes the modules comes before what cuts them up, what cuts them up
before what allocates, and the optimizer last, because it must see the parameters that will be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from trainer.distributed.fused import Fused
from trainer.distributed.sharding import local_index, local_part
from trainer.model.head import Scorer, swap_head
from trainer.model.names import aliases, named_owners, put
from trainer.model.skeleton import blocks_of
from trainer.optimizer.adamw import make_moments
from trainer.parallel import ddp, fsdp
from trainer.parallel.activation import recompute_blocks
from trainer.parallel.compiling import compile_blocks
from trainer.parallel.layout import Layout
from trainer.parallel.pipeline import Pipelined
from trainer.parallel.tensor import Split, shard_tensors
from trainer.precision.dtypes import DTYPES
from trainer.protocols import EngineJob, Weights


@dataclass(frozen=True)
class Parallelized:
    """What training needs of a parallelized model.

    Attributes:
        model: the transformers model, sharded or whole, with its own module names.
        first_block: of the model, or of what this rank has of it.
        scorer: turns a micro-batch into negative log-likelihoods, without gradient synchronisation.
        trained: what to call in training: ``scorer``, or its replicated form.
        accumulating: context for the forward and backward of a micro-batch, told whether it is the step's last.
        named: (checkpoint name, parameter), tied parameters once.
        optimizer: over them.
        gather_root: makes what lies outside of blocks whole, before the model's parts are called one by one.
        summed: parameters of whose gradients each rank of the tensor axis has a part, to be added up after a step's backward.
        fused: by name of a parameter that is several matrices in one, how they lie in it.
        pipeline: this rank's stages of it; None: every rank has all blocks.
        rehearses: whether the first backward must be one that does not count, because later ones add up in another order.
        backward: takes roots and the gradient of each, as ``torch.autograd.backward`` does.
    """

    model: nn.Module
    first_block: nn.Module
    scorer: Scorer
    trained: nn.Module
    accumulating: Callable[[bool], AbstractContextManager[None]]
    named: Sequence[tuple[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    gather_root: Callable[[], None]
    rehearses: bool
    summed: Sequence[nn.Parameter] = ()
    fused: Mapping[str, Fused] = field(default_factory=dict)
    pipeline: Pipelined | None = None
    backward: Callable[..., None] = torch.autograd.backward


def parallelize(job: EngineJob, layout: Layout) -> Parallelized:
    """Prepares ``job.skeleton`` for training under ``layout``, in place."""
    model, family, mesh = job.skeleton.model, job.skeleton.family, job.mesh
    tied = aliases(model)

    ending = job.skeleton.head
    head = swap_head(model, ending, job.chunk)

    splits = mesh["tensor"].size() > 1
    split = shard_tensors(model, family, head, tied, mesh["tensor"], layout.sequence_parallel) if splits else Split()

    recompute_blocks(blocks_of(model, family), job.recompute)
    compile_blocks(blocks_of(model, family), job.compiles)

    is_sharded = layout.fully_shard or (splits and mesh["replicate"].size() > 1)
    if is_sharded:
        fsdp.shard(model, blocks_of(model, family), layout, job.precision, fsdp.axes(mesh))

    allocate(model, tied, job.device, parameters_on="cpu" if layout.cpu_offload else job.device)
    fill([*named_owners(model), *model.named_buffers()], job.weights, split.fused)

    casts_itself = is_sharded or job.precision.compute == "fp32"
    scorer = Scorer(model, head, family, ending.bias, compute_dtype=None if casts_itself else DTYPES[job.precision.compute])
    trained: nn.Module = scorer
    accumulating: Callable[[bool], AbstractContextManager[None]] = lambda is_last: nullcontext()  # noqa: E731
    if is_sharded and not layout.reduce_every_micro_batch:
        accumulating = partial(fsdp.accumulating, model)
    elif not is_sharded and mesh["replicate"].size() > 1:
        trained = ddp.replicate(scorer, mesh["replicate"], layout.bucket_mb)
        accumulating = partial(ddp.accumulating, trained)

    named = list(named_owners(model))
    return Parallelized(
        model,
        blocks_of(model, family)[0],
        scorer,
        trained,
        accumulating,
        named,
        with_moments(job, named),
        gather_root=partial(fsdp.gather_root, model) if is_sharded else lambda: None,
        rehearses=trained is not scorer,
        summed=[model.get_parameter(name) for name in split.summed],
        fused=split.fused,
    )


def with_moments(job: EngineJob, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer over ``named``, with all that it will ever keep."""
    optimizer = job.make_optimizer(named)
    make_moments(optimizer, [parameter for group in optimizer.param_groups for parameter in group["params"]])
    return optimizer


def allocate(model: nn.Module, tied: dict[str, str], device: torch.device, parameters_on: torch.device | str) -> None:
    """Gives every meta tensor memory; ``to_empty`` breaks ties, so they are made again."""
    model.to_empty(device=parameters_on)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
    for alias, owner in tied.items():
        put(model, alias, model.get_parameter(owner))


@torch.no_grad()
def fill(named: Iterable[tuple[str, Tensor]], weights: Weights, fused: Mapping[str, Fused] | None = None) -> None:
    """Writes the first value of each parameter and buffer, by checkpoint name, into the part of it that this rank holds."""
    for name, tensor in named:
        if fused and name in fused:
            for offsets, part in fused[name].boxes(tensor):
                part.copy_(weights.fill(name, tuple(slice(o, o + size) for o, size in zip(offsets, part.shape, strict=True))))
        else:
            local_part(tensor).copy_(weights.fill(name, local_index(tensor)))
