"""Sequence parallelism: between attention and feed-forward, each rank of the tensor axis has some slots of every sequence.

Norms, residuals and their dropout are then neither computed nor kept as often as there are ranks (Korthikanti et al., 2022, "Reducing
Activation Recomputation in Large Transformer Models", section 4.2.2). An all-reduce becomes a gather before a sublayer and a
reduce-scatter behind it. transformers makes masks and positions outside of blocks, from whole sequences: these are split at the entry of a
stack's first block and whole again behind its last. Lengths need not divide: the last ranks have fewer slots. Evaluation and ``generate``,
which go slot by slot, run unsplit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from trainer.model.families import Family
from trainer.parallel.dropout import Apart, may_drop

SLOTS = Shard(1)
"""Of hidden states (B, L, H)."""
_OTHERS = ("key_value_states", "encoder_hidden_states")
"""What attentions call the states of another sequence, which they look at."""


def split_sequences(model: nn.Module, family: Family, rows: list[nn.Module], mesh: DeviceMesh) -> list[str]:
    """Splits what flows through the blocks of ``model``, whose tensors are split already.

    Args:
        model: the transformers model.
        family: of the model; says which modules need whole sequences.
        rows: the row-wise layers, which give out ``DTensor`` parts that are still to be summed.
        mesh: the tensor axis.

    Returns:
        Names of the parameters that see the rank's own slots only: ranks have to add up their gradients.
    """
    apart = Apart(mesh) if may_drop(model) else None
    summed = []
    for path in family.blocks:
        stack, blocks = _Stack(mesh, apart), list(model.get_submodule(path).children())
        blocks[0].register_forward_pre_hook(stack.enter, with_kwargs=True)
        blocks[-1].register_forward_hook(stack.leave)
        for module in [module for name, module in matching(model, family.whole) if name.startswith(f"{path}.")]:
            module.register_forward_pre_hook(stack.gather, with_kwargs=True, prepend=True)
        names = model.get_submodule(path).named_parameters(prefix=path)
        summed += [name for name, parameter in names if not isinstance(parameter, DTensor)]
    for module in rows:
        module.register_forward_hook(_add_up)
    return summed


def sequence_problems(model: Any, family: Family) -> list[str]:
    """Why the sequences of a model cannot be split, one sentence each."""
    if not family.whole:
        return [
            f"strategy.sequence_parallel=true: nobody has said yet which modules of a {family.name} need whole sequences: "
            "name them in trainer/model/families.py (whole), or set it to false."
        ]
    rates = {name: rate for name, rate in model.config.to_dict().items() if name.endswith("layerdrop") and rate}
    return [
        f"strategy.sequence_parallel=true does not go with the model's {name}={rate}, for which ranks would skip different blocks: "
        "set one of them to false or 0."
        for name, rate in rates.items()
    ]


class _Stack:
    """The hooks of one list of blocks; they do nothing outside of training.

    Args:
        mesh: the tensor axis.
        apart: lets ranks draw by themselves inside; None where nothing is dropped.
    """

    def __init__(self, mesh: DeviceMesh, apart: Apart | None):
        self._mesh, self._apart = mesh, apart
        self._length = 0

    def enter(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Leaves this rank's slots of the hidden states (B, L, H) that the first block is given."""
        if not block.training:
            return None
        if self._apart is not None:
            self._apart.begin()

        def split(hidden: Tensor) -> Tensor:
            self._length = hidden.size(1)
            return _shared(hidden, self._mesh).redistribute(placements=[SLOTS]).to_local()

        return _with_hidden(arguments, keywords, split)

    def gather(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Brings all slots together for a sublayer; what it gets is one input for all its layers, as in ``share_inputs``."""
        return _with_hidden(arguments, _sharing(keywords, self._mesh), self._whole) if module.training else None

    def leave(self, block: nn.Module, arguments: Any, output: Any) -> Any:
        """Brings all slots together behind the last block."""
        if not block.training:
            return None
        if self._apart is not None:
            self._apart.end()
        if isinstance(output, tuple):
            return self._whole(output[0]).to_local(), *output[1:]
        return self._whole(output).to_local()

    def _whole(self, hidden: Tensor) -> DTensor:
        shape = torch.Size((hidden.size(0), self._length, hidden.size(2)))
        stride = (shape[1] * shape[2], shape[2], 1)
        split = DTensor.from_local(hidden.contiguous(), self._mesh, [SLOTS], run_check=False, shape=shape, stride=stride)
        return split.redistribute(placements=[Replicate()])


def _add_up(module: nn.Module, arguments: Any, output: DTensor) -> Tensor:
    """Sums the parts of a row-wise layer's output, in training for the rank's own slots only."""
    return output.redistribute(placements=[SLOTS if module.training else Replicate()]).to_local()


def _with_hidden(arguments: tuple[Any, ...], keywords: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments of a module with changed hidden states: its first one."""
    if arguments:
        return (change(arguments[0]), *arguments[1:]), keywords
    return arguments, {**keywords, "hidden_states": change(keywords["hidden_states"])}


def share_inputs(model: nn.Module, family: Family, mesh: DeviceMesh) -> None:
    """Makes what goes into each sublayer one ``DTensor``, whose gradient is added up once, not once for query, key and value each."""

    def share(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if not module.training:
            return None
        return _with_hidden(arguments, _sharing(keywords, mesh), lambda hidden: _shared(hidden, mesh))

    for _, module in matching(model, family.whole):
        module.register_forward_pre_hook(share, with_kwargs=True, prepend=True)


def _sharing(keywords: dict[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    """The keywords of an attention that looks at another sequence, which its keys and values share too."""
    return {name: _shared(value, mesh) if name in _OTHERS and value is not None else value for name, value in keywords.items()}


def _shared(hidden: Tensor, mesh: DeviceMesh) -> DTensor:
    """What each rank has whole."""
    return DTensor.from_local(hidden, mesh, [Replicate()], run_check=False)


def matching(model: nn.Module, patterns: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The modules whose dotted paths match one of ``patterns``, in which * stands for a number."""
    matches = [re.compile(re.escape(pattern).replace(r"\*", r"\d+")).fullmatch for pattern in patterns]
    return [(path, module) for path, module in model.named_modules() if any(match(path) for match in matches)]
