"""The process group and the device of this rank."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.distributed.launch import Launch
from trainer.errors import Refused


def choose_device(requested: str | None, launch: Launch) -> torch.device:
    """This rank's device: ``requested``, or CUDA where there is one.

    Raises:
        Refused: CUDA was asked for and is not there, or there are fewer GPUs than local ranks.
    """
    if requested == "cpu" or (requested is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused(
            "run.device=cuda, but torch sees no GPU here; use run.device=cpu, or install a CUDA build of torch and check nvidia-smi."
        )
    if torch.cuda.device_count() == 1 and "SLURM_PROCID" in os.environ:  # srun --gpus-per-task shows each task its own GPU alone
        return torch.device("cuda", 0)
    if launch.local_rank >= torch.cuda.device_count():
        raise Refused(
            f"this machine has {torch.cuda.device_count()} GPU(s), but {launch.local_world_size} ranks were started on it; "
            f"use torchrun --nproc-per-node {torch.cuda.device_count()}, or run.device=cpu."
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def start_process_group(launch: Launch, device: torch.device, timeout: float) -> dist.Store:
    """Joins the ranks: gloo for CPU tensors, NCCL for CUDA ones.

    Args:
        launch: who this rank is.
        device: its device.
        timeout: seconds that a collective may wait for a lost or stuck rank.

    Returns:
        The store through which small JSON messages go (trainer.distributed.agreement). One rank alone opens no port.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    device_id = device if device.type == "cuda" else None
    if launch.launched:
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    else:
        store = dist.HashStore()
    store.set_timeout(limit)
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: do not listen where others could connect
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=launch.rank, world_size=launch.world_size, timeout=limit, device_id=device_id
    )
    return dist.PrefixStore("isotrain", store)


def stop_process_group() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
