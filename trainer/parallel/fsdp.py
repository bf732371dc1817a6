"""Sharding: parameters, gradients and moments are spread over ranks by torch's fully_shard (FSDP2), block by block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from trainer.parallel.layout import Layout
from trainer.precision.config import Precision
from trainer.precision.dtypes import DTYPES


def shard(model: nn.Module, blocks: Sequence[str], layout: Layout, precision: Precision, mesh: DeviceMesh) -> None:
    """Shards ``model`` in place: each block is one group, and what lies outside of blocks is the root's.

    Args:
        model: on meta or not.
        blocks: dotted paths of the block lists.
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
    for block in chain.from_iterable(model.get_submodule(path).children() for path in blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=layout.reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)


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
