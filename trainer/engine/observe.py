"""Reads number types back from the tensors of a running step, so that the passport states what is and not what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.optimizer.adamw import MOMENTS
from trainer.precision.dtypes import NAMES, common_name


@contextmanager
def observe_compute(block: nn.Module) -> Iterator[dict[str, str]]:
    """Yields a dict that is filled in while a step runs inside: ``compute``, ``activations``.

    Args:
        block: a transformer block that the step runs through.
    """
    seen: dict[str, str] = {}

    layer = next(module for module in block.modules() if getattr(module, "weight", None) is not None and len(_size(module.weight)) == 2)

    def look(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        assert isinstance(layer.weight, Tensor)
        seen["compute"] = NAMES[layer.weight.dtype]
        seen["activations"] = NAMES[hidden.dtype]

    # Before the block runs, and behind what gathers its parameters, which are freed again after it. Nothing inside may be hooked: it is compiled.
    handle = block.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def kept_dtypes(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """``masters``, which ``optimizer`` holds, their ``gradients`` and ``moments``."""
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "masters": common_name(masters),
        "gradients": common_name(parameter.grad for parameter in masters if parameter.grad is not None),
        "moments": common_name(optimizer.state[parameter][key] for parameter in masters for key in MOMENTS),
    }


def _size(weight: Any) -> torch.Size:
    """A parameter's, though it may be spread over ranks by DeepSpeed and empty meanwhile."""
    return getattr(weight, "ds_shape", weight.shape)
