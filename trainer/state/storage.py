"""Neutral state on disk: torch's distributed checkpoint in safetensors files, so that no byte of it is pickle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def write_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Writes ``state`` into ``folder``; every rank writes the shards that it holds, copies once. Collective.

    Raises:
        ValueError: a value is no tensor (torch's writer would pickle it under a .safetensors name without a word).
        Exception: what the writer raises when storage fails, on every rank.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"checkpoint state '{name}' is a {type(value).__name__}; only tensors can be written. Put it into state.json.")
    with _quiet():
        dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True), no_dist=_alone())


def read_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Fills ``state``'s tensors in place from ``folder``, whatever strategy and number of ranks wrote it. Collective."""
    with _quiet():
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)), planner=DefaultLoadPlanner(), no_dist=_alone())


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Every tensor of ``folder`` whose name begins with ``prefix``, whole, on the CPU, without that prefix."""
    reader = HuggingFaceStorageReader(str(folder))
    described = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), planner=DefaultLoadPlanner(), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's checkpoint code warns about itself; nothing of that is for users."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
