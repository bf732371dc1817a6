"""The neutral state of a ZeRO engine: views of the ranges that this rank holds of DeepSpeed's flat buffers.

It reaches into DeepSpeed's optimizers (zero/stage_1_and_2.py and zero/stage3.py) without importing them; tests/contracts/test_state.py
holds it to the version in constraints.txt. A buffer that lies on a disk between steps is seen through a map of its file (state/swapped.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.distributed.pieces import Pieces
from trainer.errors import StorageFailed
from trainer.optimizer.adamw import make_moments
from trainer.precision.dtypes import NAMES, common_name
from trainer.protocols import Weights
from trainer.state.swapped import Swapped


@dataclass(frozen=True)
class Range:
    """Where a parameter's elements on this rank are.

    Attributes:
        group: the number of its buffer.
        at: where they begin in the buffer.
        start: where they begin in the flattened parameter.
        length: how many.
    """

    group: int
    at: int
    start: int
    length: int

    def of(self, buffer: Tensor, size: Sequence[int]) -> Pieces:
        """The range of the masters, or of a moment of them, as part of a tensor of ``size``."""
        return Pieces(size, buffer.narrow(0, self.at, self.length), self.start)


_NAMES = {
    "fp32_partitioned_groups_flat": "fp16_groups",  # stage 3, in any precision
    "single_partition_of_fp32_groups": "bit16_groups",  # stage 2, and stage 1 in fp32
    "fp32_groups_flat_partition": "bf16_groups",  # stage 1 in bf16
}
"""What each of DeepSpeed's optimizers calls its buffers of masters, and the groups of parameters that they are made of."""


class Partitions:
    """The parameters of a ZeRO optimizer as it holds them.

    Args:
        zero: DeepSpeed's optimizer of stage 1, 2 or 3.
        named: (checkpoint name, parameter), tied parameters once.
    """

    def __init__(self, zero: Any, named: Sequence[tuple[str, nn.Parameter]]):
        self._zero, self._named = zero, named
        kind = next(kind for kind in _NAMES if hasattr(zero, kind))
        self._by_parameter = kind == "fp32_partitioned_groups_flat"
        self.flats: list[Tensor] = getattr(zero, kind)
        groups = getattr(zero, _NAMES[kind])
        self._group_of = {id(parameter): number for number, group in enumerate(groups) for parameter in group}
        self._gradient_type = getattr(zero, "grad_acc_dtype", None) or zero.gradient_accumulation_dtype
        self._swapped = Swapped(zero)
        for group, flat in enumerate(self.flats):
            with self._swapped.resident(group, changed=True):
                make_moments(zero.optimizer, [flat])

    def state(self) -> dict[str, Tensor]:
        """``model.NAME`` and the moments live; the step counts, of which DeepSpeed has one per buffer, as copies."""
        self._swapped.flush()  # the maps of the last time are kept no longer
        state: dict[str, Tensor] = {}
        buffers = [self._buffers(group) for group in range(len(self.flats))]
        for name, parameter in self._named:
            size = getattr(parameter, "ds_shape", parameter.shape)
            held = self._range(parameter)
            if held is None:
                state[f"model.{name}"] = self._frozen(parameter, size)
                continue
            master, moments = buffers[held.group]
            state[f"model.{name}"] = held.of(master, size)
            for key, value in moments.items():
                state[f"optim.{name}.{key}"] = held.of(value, size) if value.ndim else value.clone()
        return state

    def take(self, state: dict[str, Tensor]) -> None:
        """Makes what has been read into ``state`` the engine's: step counts, and what the model computes with.

        Raises:
            StorageFailed: parameters of one buffer were stepped unequally often, which it cannot hold.
        """
        for name, parameter in self._named:
            held, step = self._range(parameter), state.get(f"optim.{name}.step")
            if held is None:
                parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # hpZ's copy is of what was there before
            elif step is not None:
                self._zero.optimizer.state[self.flats[held.group]]["step"].copy_(step)
        steps = {float(tensor) for name, tensor in state.items() if name.endswith(".step")}
        if len(steps) > 1:
            raise StorageFailed(
                f"The checkpoint's parameters were stepped {min(steps):.0f} to {max(steps):.0f} times; ZeRO keeps one count for all of them. "
                "Go on with strategy=fsdp or ddp."
            )
        self._swapped.flush()
        self._spread()

    @torch.no_grad()
    def fill(self, weights: Weights) -> None:
        """Gives the masters their first values in fp32, where DeepSpeed has made them of what it computes with."""
        buffers = [self._buffers(group) for group in range(len(self.flats))]
        for name, parameter in self._named:
            if held := self._range(parameter):
                whole = weights.fill(name).expand(getattr(parameter, "ds_shape", parameter.shape)).flatten()
                buffers[held.group][0].narrow(0, held.at, held.length).copy_(whole.narrow(0, held.start, held.length))
        self._swapped.flush()

    @torch.no_grad()
    def _spread(self) -> None:
        """Brings the masters into the parameters that the model computes with, on every rank. Collective."""
        if not self._by_parameter:
            self._zero.update_lp_params()
            return
        for group in range(len(self.flats)):
            with self._swapped.resident(group, changed=False):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._zero._partition_all_parameters()
        if kept := self._zero.persistent_parameters:  # small ones, which every rank keeps whole
            kept[0].all_gather(kept)
        self._zero.invalidate_secondary_tensor()

    def _buffers(self, group: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The masters of a group, and what its optimizer keeps of them by name; both live."""
        flat = self.flats[group]
        kept = self._zero.optimizer.state[flat]
        return self._swapped.buffers(group, kept) if self._swapped.holds(group) else (flat.detach(), kept)

    def _range(self, parameter: nn.Parameter) -> Range | None:
        """This rank's part of a parameter's master; None: it is frozen and has none."""
        if not parameter.requires_grad:
            return None
        if self._by_parameter:
            group, at, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = min(self._zero._get_param_partition_rank(parameter) * length, parameter.ds_numel)  # type: ignore[attr-defined]
            return Range(group, at, start, min(length, parameter.ds_numel - start))  # type: ignore[attr-defined]
        group, mapping = self._group_of[id(parameter)], parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return Range(group, 0, 0, 0)
        master, own = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Range(group, master.start, own.start, master.numel)

    def _frozen(self, parameter: Any, size: Sequence[int]) -> Tensor:
        """What this rank holds of a parameter that has no master; always fp32, for under bf16 frozen parameters are refused."""
        if not self._by_parameter:
            return parameter.detach()
        held = parameter.ds_tensor
        start = min(self._zero._get_param_partition_rank(parameter) * held.ds_numel, parameter.ds_numel)
        length = min(held.ds_numel, parameter.ds_numel - start)
        on_disk = held.final_location == "nvme"
        values = self._swapped.map(parameter.nvme_swapper.get_path(parameter), held.ds_numel) if on_disk else held.detach()
        return Pieces(size, values.narrow(0, 0, length), start)

    def dtypes(self) -> dict[str, str]:
        """The number types of what is kept."""
        moments = [value for flat in self.flats for value in self._zero.optimizer.state[flat].values() if value.ndim]
        kept = {"masters": common_name(self.flats), "gradients": NAMES[self._gradient_type]}
        return kept | ({"moments": common_name(moments)} if moments else {})
