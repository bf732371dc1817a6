"""Neutral state on disk: torch's distributed checkpoint in safetensors files, so that no byte of it is pickle."""

from __future__ import annotations

import logging
import queue
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint._hf_utils import _gen_file_name
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


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
        dcp.save(state, storage_writer=_Writer(str(folder), save_distributed=True), no_dist=_alone())


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


class _Writer(HuggingFaceStorageWriter):
    """Puts the boxes that a rank holds of one tensor into files of their own: safetensors have each name once."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        seen: Counter[str] = Counter()
        files: dict[int, list[WriteItem]] = {}
        for item in plan.items:
            seen[item.index.fqn] += 1
            files.setdefault(seen[item.index.fqn], []).append(item)
        waiting: queue.Queue[tuple[Any, str, list[WriteItem]]] = queue.Queue()
        for number, items in files.items():
            name = _gen_file_name(number, len(files), plan.storage_data["shard_index"])
            waiting.put((self.fs.concat_path(self.path, name), name, items))
        return self._write_data(planner, waiting)


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's checkpoint code warns about itself; nothing of that is for users."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
