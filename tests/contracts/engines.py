"""Engines as a run builds them, for functions that run on ranks and look inside."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer import assembly
from trainer.config import load
from trainer.distributed.launch import read_launch
from trainer.distributed.pieces import Boxes, Pieces
from trainer.distributed.process_group import start_process_group
from trainer.model.skeleton import CLASSES
from trainer.protocols import Engine
from trainer.session.job import Job


def build_job(arguments: Sequence[str]) -> Job:
    """Everything that a run knows before its engine, with the process group started."""
    launch = read_launch(os.environ)
    job = assembly.open_job(load([*arguments, "run.device=cpu"], launch.world_size), launch)
    start_process_group(launch, job.device, 60)
    return job


def build_engine(arguments: Sequence[str]) -> tuple[Job, Engine]:
    """A job and its engine, filled."""
    job = build_job(arguments)
    return job, assembly.build_engine(job)


def whole(tensor: Tensor) -> Tensor:
    """A parameter or moment in full, on every rank."""
    if isinstance(tensor, Pieces):
        flat = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        flat[tensor.start : tensor.start + tensor.held.numel()] = tensor.held
        dist.all_reduce(flat)
        return flat.view(tensor.size())
    if isinstance(tensor, Boxes):
        found, mesh = torch.full(tensor.size(), -torch.inf), tensor.held.device_mesh
        for offsets, part in tensor.boxes:
            found[tuple(slice(o, o + size) for o, size in zip(offsets, part.shape, strict=True))] = part
        for axis in range(mesh.ndim):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(axis))
        return found
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def micro_batches(job: Job, engine: Engine, step: int, size: int | None = None):
    """This rank's micro-batches of a step."""
    loader = assembly.build_loader(job, engine)
    return replace(loader, micro_batch=size or loader.micro_batch).load(step)[2]


def write_stock(arguments, folder, dtype="float32", prefix="", **options):
    """On a rank: writes a stock model of a command line's shape, with the corpus' tokenizer, as a Hugging Face folder.

    ``prefix`` is left out of the names in the files; ``options`` are those of ``save_pretrained``.
    """
    job = build_job(arguments)
    torch.manual_seed(3)
    model = CLASSES[job.skeleton.task].from_config(job.skeleton.model.config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 64)  # norms and biases too: values that nobody would find by guessing
    tensors = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, **options, **({"state_dict": tensors} if prefix else {}))
    for path in job.corpus.tokenizer_folder.iterdir():
        shutil.copy(path, folder)


def pretrained(arguments: Sequence[str], folder: Path) -> list[str]:
    """A command line with the model of ``folder`` in place of its own."""
    return [*(argument for argument in arguments if not argument.startswith("model")), "model=pretrained", f"model.path={folder}"]
