"""The neutral state of a ZeRO engine: views of the ranges that this rank holds of DeepSpeed's flat buffers.

It reaches into DeepSpeed's optimizers (zero/stage_1_and_2.py and zero/stage3.py) without importing them; tests/contracts/test_state.py
holds it to the version in constraints.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.distributed.pieces import Pieces
from trainer.errors import StorageFailed
from trainer.optimizer.adamw import make_moments
from trainer.precision.dtypes import NAMES, common_name


@dataclass(frozen=True)
class Range:
    """Where a parameter's elements on this rank are.

    Attributes:
        flat: the fp32 buffer of its group.
        at: where they begin in ``flat``.
        start: where they begin in the flattened parameter.
        length: how many.
    """

    flat: Tensor
    at: int
    start: int
    length: int

    def of(self, buffer: Tensor, size: Sequence[int]) -> Pieces:
        """The range of ``flat`` or of a moment of it, as part of a tensor of ``size``."""
        return Pieces(size, buffer.detach().narrow(0, self.at, self.length), self.start)


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
        make_moments(zero.optimizer, self.flats)

    def state(self) -> dict[str, Tensor]:
        """``model.NAME`` and the moments live; the step counts, of which DeepSpeed has one per buffer, as copies."""
        state: dict[str, Tensor] = {}
        for name, parameter in self._named:
            size = getattr(parameter, "ds_shape", parameter.shape)
            held = self._range(parameter)
            if held is None:
                state[f"model.{name}"] = self._frozen(parameter, size)
                continue
            state[f"model.{name}"] = held.of(held.flat, size)
            for key, value in self._zero.optimizer.state[held.flat].items():
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
                self._zero.optimizer.state[held.flat]["step"].copy_(step)
        steps = {float(tensor) for name, tensor in state.items() if name.endswith(".step")}
        if len(steps) > 1:
            raise StorageFailed(
                f"The checkpoint's parameters were stepped {min(steps):.0f} to {max(steps):.0f} times; ZeRO keeps one count for all of them. "
                "Go on with strategy=fsdp or ddp."
            )
        self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """Brings the masters into the parameters that the model computes with, on every rank. Collective."""
        if not self._by_parameter:
            self._zero.update_lp_params()
            return
        for number in range(len(self.flats)):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        self._zero._partition_all_parameters()
        if kept := self._zero.persistent_parameters:  # small ones, which every rank keeps whole
            kept[0].all_gather(kept)
        self._zero.invalidate_secondary_tensor()

    def _range(self, parameter: nn.Parameter) -> Range | None:
        """This rank's part of a parameter's master; None: it is frozen and has none."""
        if not parameter.requires_grad:
            return None
        if self._by_parameter:
            group, at, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = min(self._zero._get_param_partition_rank(parameter) * length, parameter.ds_numel)  # type: ignore[attr-defined]
            return Range(self.flats[group], at, start, min(length, parameter.ds_numel - start))  # type: ignore[attr-defined]
        flat, mapping = self.flats[self._group_of[id(parameter)]], parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return Range(flat, 0, 0, 0)
        master, own = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Range(flat, master.start, own.start, master.numel)

    def _frozen(self, parameter: Any, size: Sequence[int]) -> Tensor:
        """What this rank holds of a parameter that has no master; always fp32, for under bf16 frozen parameters are refused."""
        if not self._by_parameter:
            return parameter.detach()
        start = min(self._zero._get_param_partition_rank(parameter) * parameter.ds_tensor.numel(), parameter.ds_numel)
        length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
        return Pieces(size, parameter.ds_tensor.detach().narrow(0, 0, length), start)

    def dtypes(self) -> dict[str, str]:
        """The number types of what is kept."""
        moments = [value for flat in self.flats for value in self._zero.optimizer.state[flat].values() if value.ndim]
        kept = {"masters": common_name(self.flats), "gradients": NAMES[self._gradient_type]}
        return kept | ({"moments": common_name(moments)} if moments else {})

    def trained(self) -> Iterator[tuple[str, Range, Sequence[int]]]:
        """Name, range and whole size of each parameter that has a master."""
        for name, parameter in self._named:
            if held := self._range(parameter):
                yield name, held, getattr(parameter, "ds_shape", parameter.shape)
