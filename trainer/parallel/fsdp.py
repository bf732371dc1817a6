"""Sharding: parameters, gradients and moments are spread over ranks by torch's fully_shard (FSDP2), block by block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from trainer.parallel.layout import Layout
from trainer.precision.config import Precision
from trainer.precision.dtypes import DTYPES


def axes(mesh: DeviceMesh) -> DeviceMesh:
    """Of the whole mesh, the axis or the two over which parameters are spread and gradients added up."""
    return mesh["shard"] if mesh["replicate"].size() == 1 else mesh["replicate", "shard"]


def shard(model: nn.Module, blocks: Sequence[nn.Module], layout: Layout, precision: Precision, mesh: DeviceMesh) -> None:
    """Shards ``model`` in place: each block is one group, and what lies outside of blocks is the root's.

    Args:
        model: on meta or not.
        blocks: its blocks.
        layout: resharding and offload.
        precision: parameters are gathered in its compute type, gradients reduced in its reduce type.
        mesh: the shard axis, or (replicate, shard) for hybrid sharding.
    """
    # Some blocks (T5's) give out views. The next block changes none in place, which is what the warning is about; the contract Gradient shows it.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision.compute == "fp32" else DTYPES[precision.compute],
        reduce_dtype=DTYPES[precision.reduce],
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if layout.cpu_offload else OffloadPolicy()
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=layout.reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)
    if mesh.device_type == "cpu":
        for module in (*blocks, model):
            assert isinstance(module, FSDPModule)
            module.set_custom_reduce_scatter(Exchange())  # type: ignore[arg-type]


class Exchange:
    """A reduce-scatter over gloo, which has none: torch would all-reduce and throw all but this rank's part away, twice the bytes.

    Each rank sends every other its part and adds up what it gets, in rank order. For ``FSDPModule.set_custom_reduce_scatter``.
    """

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what goes in or comes out."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False) -> None:
        """Writes this rank's part of the mean or the sum over ``group`` of ``input_tensor`` into ``output_tensor``."""
        assert op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG) and not async_op
        parts = torch.empty_like(input_tensor)
        dist.all_to_all_single(parts, input_tensor, group=group)
        torch.sum(parts.view(group.size(), -1), dim=0, out=output_tensor)
        if op == dist.ReduceOp.AVG:
            output_tensor.div_(group.size())


def accumulating(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Gradients stay whole and local until the last micro-batch of a step."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_last)
    return nullcontext()


def gather_root(model: nn.Module) -> None:
    """Gathers the parameters outside of blocks until the next backward."""
    assert isinstance(model, FSDPModule)
    model._get_fsdp_state()._lazy_init()  # else the first block that is called would take itself for the root
    model.unshard()


def keep_gradients(model: nn.Module) -> None:
    """Adds gradients that are there to those of earlier micro-batches, in the reduce type, as FSDP does behind a whole backward."""
    if not isinstance(model, FSDPModule):
        return
    for group in (group for state in model._get_fsdp_state()._state_ctx.all_states for group in state._fsdp_param_groups):
        for parameter in group.fsdp_params:
            parameter.accumulate_unsharded_grad_if_needed()
            parameter.to_accumulated_grad_if_needed()
