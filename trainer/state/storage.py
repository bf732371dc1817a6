"""Neutral state on disk: torch's distributed checkpoint in safetensors files, so that no byte of it is pickle."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader, StorageWriter
from torch.distributed.checkpoint._hf_utils import _gen_file_name
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.futures import Future


@dataclass(frozen=True)
class Part:
    """What one rank writes of one tensor.

    Attributes:
        name: of the tensor.
        offsets: of the part in the whole.
        tensor: what is in it.
    """

    name: str
    offsets: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True)
class Shares:
    """Which parts of a state this rank writes, and into which files.

    Attributes:
        names: of the state's tensors.
        files: by name of a file, the tensor and the place in it of each part.
    """

    names: frozenset[str]
    files: dict[str, list[MetadataIndex]]

    @torch.no_grad()  # else each DTensor would give its part by a function of autograd
    def of(self, state: dict[str, Tensor]) -> dict[str, list[Part]]:
        """The parts, live, in a state of the same tensors."""
        assert state.keys() == self.names
        return {
            file: [Part(index.fqn, tuple(index.offset or ()), find_state_dict_object(state, index).detach()) for index in held]
            for file, held in self.files.items()
        }


def plan_shares(state: dict[str, Tensor]) -> Shares:
    """Lets torch plan who writes what of states like this one; what several ranks hold is written once. Collective.

    Raises:
        ValueError: a value is no tensor, for which a safetensors file has no place.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"checkpoint state '{name}' is a {type(value).__name__}; only tensors can be written. Put it into state.json.")
    planned = _Planned()
    with _quiet():
        dcp.save(state, storage_writer=planned, no_dist=_alone())
    return Shares(frozenset(state), planned.files)


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


class _Planned(StorageWriter):
    """Keeps what torch plans for this rank, and writes nothing."""

    def __init__(self) -> None:
        self.files: dict[str, list[MetadataIndex]] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: it is used once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tells each rank its number, from 1."""
        return [replace(plan, storage_data=number) for number, plan in enumerate(plans, start=1)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Puts the boxes that a rank holds of one tensor into files of their own: safetensors have each name once."""
        seen: Counter[str] = Counter()
        files: dict[int, list[MetadataIndex]] = {}
        for item in plan.items:
            seen[item.index.fqn] += 1
            files.setdefault(seen[item.index.fqn], []).append(item.index)
        self.files = {_gen_file_name(number, len(files), plan.storage_data): held for number, held in files.items()}
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing: files say themselves what is in them."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """There is none."""
        return True


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's checkpoint code warns about itself; nothing of that is for users."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
