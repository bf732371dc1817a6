"""The neutral state of a native engine: its live tensors under names that no strategy enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from trainer.distributed.fused import Fused


def neutral_state(
    named: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, fused: Mapping[str, Fused]
) -> dict[str, Tensor]:
    """Parameters and moments by checkpoint name.

    Args:
        named: (checkpoint name, parameter), tied parameters once.
        optimizer: with its moments made (trainer.optimizer.adamw).
        fused: by name of a parameter that is several matrices in one, how they lie in it.

    Returns:
        ``model.NAME``, ``optim.NAME.exp_avg``, ``optim.NAME.exp_avg_sq`` (moments in the type in which they rest; DTensor, plain, or trainer.distributed.pieces) and ``optim.NAME.step`` (scalar),
        sharing memory with the live ones.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in named:
        if f"model.{name}" not in state:  # a rank with two stages of a pipeline may have two of one name
            held = {f"model.{name}": parameter.detach()} | {
                f"optim.{name}.{key}": value for key, value in optimizer.state[parameter].items()
            }
            order = fused.get(name)
            state |= {key: order.neutral(value) if order and value.ndim else value for key, value in held.items()}
    return state


@torch.no_grad()
def repeat_copies(named: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> None:
    """Gives every further parameter of a name what the first one has, moments included."""
    first: dict[str, nn.Parameter] = {}
    for name, parameter in named:
        source = first.setdefault(name, parameter)
        if source is not parameter:
            parameter.copy_(source)
            for key, value in optimizer.state[source].items():
                optimizer.state[parameter][key].copy_(value)
