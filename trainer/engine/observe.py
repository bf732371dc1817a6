"""Reads number types back from the tensors of a running step, so that the passport states what is and not what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.precision.dtypes import NAMES


@contextmanager
def observe_dtypes(block: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, str]]:
    """Yields a dict that is filled in while a step runs inside: master parameters, compute, activations, gradients, moments.

    Args:
        block: a transformer block that the step runs through.
        optimizer: over the master parameters.
    """
    seen: dict[str, str] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(module.weight, Tensor)
        seen["compute"] = NAMES[module.weight.dtype]
        seen["activations"] = NAMES[hidden.dtype]

    # A layer inside the block, not the block: when a block's own hook runs, its gathered parameters have been freed again.
    layer = next(module for module in block.modules() if getattr(module, "weight", None) is not None and module.weight.ndim == 2)
    handle = layer.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    seen["masters"] = _one_name({parameter.dtype for parameter in masters})
    seen["gradients"] = _one_name({parameter.grad.dtype for parameter in masters if parameter.grad is not None})
    seen["moments"] = _one_name({optimizer.state[parameter][key].dtype for parameter in masters for key in ("exp_avg", "exp_avg_sq")})


def _one_name(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(NAMES.get(dtype, str(dtype)) for dtype in dtypes))
