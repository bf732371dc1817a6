"""Masters and moments that DeepSpeed keeps on a disk between steps (ZeRO-Infinity, Rajbhandari et al., 2021).

A buffer's file holds its numbers as they are, so a map of the file is a live view of them: state is written and read through it without
bringing a whole buffer into memory. DeepSpeed itself reads and writes past the page cache; hence ``flush``, before it reads again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Swapped:
    """The buffers of DeepSpeed's optimizer that lie on a disk: under stage 3 all from 1 MiB on, if the user wants it.

    Args:
        zero: DeepSpeed's optimizer.
    """

    def __init__(self, zero: Any):
        self._zero = zero
        self._maps: list[np.memmap[Any, Any]] = []

    def holds(self, group: int) -> bool:
        """Whether this group's buffers lie on the disk."""
        return getattr(self._zero, "swap_optimizer", False) and bool(self._zero._swappable_optimizer_subgroup(group))

    @contextmanager
    def resident(self, group: int, changed: bool) -> Iterator[None]:
        """A group's buffers in memory; if they are ``changed`` there, they are written back."""
        if not self.holds(group):
            yield
            return
        self._zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            leave = self._zero._optimizer_states_and_gradient_swap_out if changed else self._zero._release_swap_buffers
            leave(group)

    def buffers(self, group: int, kept: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """A group's masters and what the optimizer keeps of them, ``kept``, with maps of files in place of what is empty at rest."""
        flat = self._zero.fp32_partitioned_groups_flat[group]
        size = int(self._zero.fp16_partitioned_groups_flat_numel[group])
        held = self._zero.optimizer_swapper.swap_params_info[flat.ds_id].tensors
        paths = {id(tensor.compute_tensor): tensor.swap_path for tensor in held}
        moments = {name: self.map(paths[id(value)], size) if id(value) in paths else value for name, value in kept.items()}
        return self.map(paths[id(flat)], size), moments

    def map(self, path: str, size: int) -> Tensor:
        """The first ``size`` fp32 numbers of a file, live."""
        mapped = np.memmap(path, np.float32, mode="r+", shape=(size,))
        self._maps.append(mapped)
        return torch.from_numpy(mapped)

    def flush(self) -> None:
        """Brings what was written through maps to the disk, and forgets the maps."""
        for mapped in self._maps:
            mapped.flush()
        self._maps.clear()
