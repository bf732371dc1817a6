"""Replication: every rank holds everything, gradients are averaged by torch's DistributedDataParallel."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from trainer.model.head import Scorer


def replicate(scorer: Scorer, mesh: DeviceMesh, bucket_mb: int) -> DistributedDataParallel:
    """Wraps ``scorer`` so that its gradients are averaged over the one axis of ``mesh``.

    Nothing is broadcast at the start: every rank has filled in the same weights by itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a new name in torch 2.13 that 2.11 does not know
        return DistributedDataParallel(
            scorer,
            process_group=mesh.get_group(),
            bucket_cap_mb=bucket_mb,
            broadcast_buffers=False,
            init_sync=False,
            gradient_as_bucket_view=True,
        )


def accumulating(wrapped: DistributedDataParallel, is_last: bool) -> AbstractContextManager[None]:
    """Gradients stay local until the last micro-batch of a step."""
    return nullcontext() if is_last else wrapped.no_sync()
