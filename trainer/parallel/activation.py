"""Activation checkpointing: a block keeps what goes into it and is computed again for its backward (Chen et al., 2016).

``selective`` keeps the outputs of matrix products, attention and collectives as well, so that only what is cheap is computed again. Dropout
draws the same a second time: torch puts the generators back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

_NAMES = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_")
_KEPT = {
    getattr(torch.ops.aten, name).default
    for name in dir(torch.ops.aten)
    if (name in _NAMES or name.startswith(_NAMES[-1])) and hasattr(getattr(torch.ops.aten, name), "default")
}
"""Operations whose outputs are dearer to compute than to keep."""


@dataclass(frozen=True)
class Recompute:
    """What is computed again.

    Attributes:
        kind: ``full``: whole blocks; ``selective``: of them what is cheap.
        every: of so many blocks one.
    """

    kind: str
    every: int = 1


def recompute_blocks(blocks: Sequence[nn.Module], recompute: Recompute | None, first: int = 0) -> None:
    """Lets every k-th of ``blocks`` be computed again for its backward; names of modules and parameters stay.

    Args:
        blocks: a model's, or a stage's.
        recompute: None: none of them.
        first: number of the first of ``blocks`` in the model.
    """
    if recompute is None:
        return
    contexts: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if recompute.kind == "selective" else {}
    )
    for number, block in enumerate(blocks, start=first):
        if number % recompute.every == 0:
            block.gradient_checkpointing = True  # type: ignore[assignment]
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **contexts)  # type: ignore[assignment]


def recompute_problems(blocks: Sequence[nn.Module], recompute: Recompute | None) -> list[str]:
    """Blocks that transformers does not let be computed again, a sentence."""
    others = sorted({type(block).__name__ for block in blocks if not isinstance(block, GradientCheckpointingLayer)})
    if recompute is None or not others:
        return []
    return [f"train.activation_checkpointing={recompute.kind}: transformers cannot do that with a {others[0]}: leave it out."]


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    keeps = operation in _KEPT or operation.namespace in ("_c10d_functional", "torch_attn")
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
