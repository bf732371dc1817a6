"""What a machine must have for ZeRO-Infinity: looked at on every rank before ranks meet."""

from __future__ import annotations

import ctypes
import math
import mmap
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.engine.scratch import remove_left, takes_direct_writes


@dataclass(frozen=True)
class Load:
    """What one rank swaps, in numbers of elements.

    Attributes:
        model: of the whole model.
        largest_part: the most that one rank holds of a parameter.
        world_size, local_world_size: number of ranks, and on this machine.
        compute_bytes: of an element that the model computes with.
    """

    model: int
    largest_part: int
    world_size: int
    local_world_size: int
    compute_bytes: int

    def on_disk(self, optimizer: bool, parameters: bool) -> int:
        """Bytes that the ranks of this machine have on its disk: masters, moments and gradients in fp32, and parameters."""
        per_element = 16 * optimizer + self.compute_bytes * parameters
        return per_element * math.ceil(self.model / self.world_size) * self.local_world_size

    def locked(self, optimizer: bool, parameters: bool, sub_group: int) -> int:
        """Bytes of memory that DeepSpeed locks on one rank.

        Four fp32 buffers of the largest sub-group, which is closed by the parameter that crosses its limit; for parameters five of the largest
        part, and one of the largest sub-group as it is before it is divided.
        """
        held = min(sub_group + self.largest_part, math.ceil(self.model / self.world_size))
        return 16 * held * optimizer + (5 * self.largest_part + held * self.world_size) * self.compute_bytes * parameters


def is_swapped(offload: Any) -> bool:
    """Whether a section of DeepSpeed's JSON sends something to a disk."""
    return isinstance(offload, dict) and offload.get("device") == "nvme"


def swap_problems(zero: dict[str, Any], load: Load) -> Iterator[str]:
    """What keeps this machine from swapping as ``zero``, DeepSpeed's ``zero_optimization``, wants it; one sentence each."""
    what = {"optimizer": is_swapped(zero.get("offload_optimizer")), "parameters": is_swapped(zero.get("offload_param"))}
    path = next(value["nvme_path"] for value in zero.values() if is_swapped(value))
    folder = Path(path).expanduser()
    try:
        remove_left(folder)
        direct = takes_direct_writes(folder)
    except OSError as error:
        yield f"strategy.nvme_path={path} cannot be written to: {error.strerror}. Choose a folder on a local disk."
        return
    if not direct:
        yield f"strategy.nvme_path={path} takes no direct writes, as a disk in memory does not: choose a folder on a local disk."
    free, needed = shutil.disk_usage(folder).free, load.on_disk(**what)
    if free < needed:
        yield (
            f"strategy.nvme_path={path} has {free / 1e9:.1f} GB free, and the {load.local_world_size} ranks of this machine swap "
            f"{needed / 1e9:.1f} GB: choose a larger disk, or offload to cpu."
        )
    allowed, locks = lockable(), load.locked(**what, sub_group=zero["sub_group_size"])
    if allowed is not None and allowed < locks:
        yield (
            f"strategy.offload_*=nvme locks {locks / 1e6:,.0f} MB of memory per rank, and this process may lock {allowed / 1e6:,.0f} MB: "
            "raise the limit (ulimit -l unlimited; docker run --ulimit memlock=-1), or lower strategy.bucket_elements."
        )


def lockable() -> int | None:
    """Bytes of memory that this process may lock, its soft limit raised to the hard one; None: as much as there is."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return None
    with mmap.mmap(-1, hard + mmap.PAGESIZE) as beyond:  # with CAP_IPC_LOCK there is no limit
        address = ctypes.byref(ctypes.c_char.from_buffer(beyond))
        libc = ctypes.CDLL(None)
        unlimited = libc.mlock(address, ctypes.c_size_t(len(beyond))) == 0
        if unlimited:
            libc.munlock(address, ctypes.c_size_t(len(beyond)))
        del address
    return None if unlimited else hard
