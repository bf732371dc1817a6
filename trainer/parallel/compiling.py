"""Regional compilation: torch.compile of each block by itself, so that blocks that are alike share one piece of code.

A block's ``forward`` is compiled, not what is around it: hooks of FSDP, and ours, stay outside and as they are. Activation checkpointing is
inside, where the compiler sees what is to be computed again. A break in a block's graph is an error, never a slow step.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

BACKEND = "inductor"
_VARIANTS = 64
"""So many forms of a block may be compiled: first and other blocks of each stack, with and without masks, in training and evaluation, and each
once more when a length turns out to vary. Torch's own limit, 8, is for code that should have one."""


def compile_blocks(blocks: Sequence[nn.Module], wanted: bool) -> None:
    """Lets each of ``blocks`` run as compiled code if it is ``wanted``; names of modules and parameters stay."""
    if not wanted:
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    compiled = torch.compile(_forward, fullgraph=True, backend=BACKEND)
    for block in blocks:
        block.forward = partial(compiled, block)


def _forward(block: nn.Module, *arguments: Any, **named: Any) -> Any:
    """By what the class of ``block`` is when it is called: sharding exchanges it, and activation checkpointing looks at that."""
    return type(block).forward(block, *arguments, **named)


def uncompiled(compiles: bool) -> AbstractContextManager[None]:
    """While inside, what ``compiles`` runs as it is written: what writes token by token has another length at each of them."""
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def compile_problems(device: torch.device, draws_inside: bool, meets_again: bool) -> Iterator[str]:
    """What the compiler lacks on this machine, a sentence each, and what it cannot do.

    Args:
        device: this rank's.
        draws_inside: whether ranks of the tensor axis leave the random numbers that they share while a block runs (trainer.parallel.dropout).
        meets_again: whether whole blocks in which they exchange tensors are computed again.
    """
    if draws_inside:
        yield (
            "train.compile=true does not go with dropout where tensors are split, since ranks change their random numbers inside of blocks: "
            "set the model's dropouts to 0, use strategy=fsdp, or leave it out."
        )
    if meets_again:
        yield (
            "train.compile=true does not go with train.activation_checkpointing=full where tensors are split, since torch keeps what a compiled "
            "block's collectives have not brought yet: set the second to selective, use strategy=fsdp, or leave it out."
        )
    if device.type == "cuda":
        if find_spec("triton") is None:
            yield "train.compile=true writes its kernels in Triton, which is not installed: pip install triton, or leave it out."
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        yield f"train.compile=true needs a C++ compiler on CPUs, and there is no {compiler}: apt-get install g++, or leave it out."
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        yield "train.compile=true needs Python's headers on CPUs, which are not installed: apt-get install python3-dev, or leave it out."


def compile_seconds() -> float:
    """How long this process has compiled."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]
