"""Engines as a run builds them, for functions that run on ranks and look inside."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from trainer import run
from trainer.config import load
from trainer.data.prepare import prepare
from trainer.distributed.launch import read_launch
from trainer.distributed.process_group import choose_device, start_process_group
from trainer.model.skeleton import build_skeleton, pretrained_folder
from trainer.protocols import Engine
from trainer.session.job import Job


def build_job(arguments: Sequence[str]) -> Job:
    """Everything that a run knows before its engine, with the process group started."""
    launch = read_launch(os.environ)
    config = load(arguments, launch.world_size)
    source = pretrained_folder(config.model)
    corpus = prepare(config.data, str(source) if source else None)
    device = choose_device("cpu", launch)
    start_process_group(launch, device, 60)
    return Job(config, launch, corpus, build_skeleton(config.model, corpus.vocabulary, source), device, console=None)


def build_engine(arguments: Sequence[str]) -> tuple[Job, Engine]:
    """A job and its engine, filled."""
    job = build_job(arguments)
    return job, run._build_engine(job)


def whole(tensor: Tensor) -> Tensor:
    """A parameter or moment in full, on every rank."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def micro_batches(job: Job, engine: Engine, step: int, size: int | None = None):
    """This rank's micro-batches of a step."""
    from trainer.data.loader import StepLoader
    from trainer.data.order import SampleOrder

    rows, train = job.corpus.rows("train"), job.config.train
    loader = StepLoader(
        rows,
        SampleOrder(len(rows), train.seed),
        job.config.objective.collate,
        global_batch=train.global_batch,
        micro_batch=size or train.micro_batch,
        data_rank=engine.data_rank,
        data_size=engine.data_size,
    )
    return loader.load(step)[2]


def write_stock(arguments, folder, dtype="float32", prefix="", **options):
    """On a rank: writes a stock model of a command line's shape, with the corpus' tokenizer, as a Hugging Face folder.

    ``prefix`` is left out of the names in the files; ``options`` are those of ``save_pretrained``.
    """
    job = build_job(arguments)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(job.skeleton.model.config, dtype=getattr(torch, dtype))
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
