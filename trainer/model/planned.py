"""What keeps a decoder whose family is transformers' own plan (trainer.model.lookup) from being trained: what no plan says, asked of the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from trainer.model.families import FAMILIES
from trainer.model.skeleton import Skeleton

_ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layer that see a slot's own document only, given positions that restart."""


def planned_problems(skeleton: Skeleton) -> list[str]:
    """What keeps a model whose family is transformers' plan from being trained, one sentence each; none for a row of ours."""
    model, family = skeleton.model, skeleton.family
    if model.config.model_type in FAMILIES:
        return []
    row = "give it a row in trainer/model/families.py (docs/adding-a-model-family.md)"
    kinds = set(getattr(model.config, "layer_types", None) or ()) - _ATTENTION
    problems = [f"model: layers of kind {kind} of a {family.name} are not supported: choose another model." for kind in sorted(kinds)]
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        problems.append(
            f"model: this {family.name} attends to later tokens too, and causal_lm would learn to look ahead: choose another model."
        )
    if getattr(model.config, "num_kv_shared_layers", 0):
        problems.append(f"model: layers of a {family.name} share keys and values, which is not supported: choose another model.")
    planned = {path.rpartition(".")[2] for path in (*family.blocks, *family.before[0])} | set(model.config.base_model_pp_plan)
    for name, part in model.get_submodule(model.base_model_prefix).named_children():
        if name not in planned and any(True for _ in part.parameters()):
            problems.append(f"model: transformers' plan of a {family.name} does not say what its {name} is: {row}.")
    if type(model.get_submodule(skeleton.head.linear or "")) is not nn.Linear:
        problems.append(f"model: the head of a {family.name} is no plain linear layer: {row}.")
    elif why := _changes_logits(skeleton):
        problems.append(f"model: a {family.name} {why}, and the loss is made from what the head itself puts out: choose another model.")
    return problems


class _Says(nn.Module):
    """Stands for a module and always gives the same."""

    def __init__(self, value: Any):
        super().__init__()
        self._value = value

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self._value


def _changes_logits(skeleton: Skeleton) -> str | None:
    """How a model's own forward does not give out its head's logits as they are; found out by running it around two stand-ins."""
    model, head = skeleton.model, skeleton.head.linear
    tried = copy.copy(model)
    try:
        logits = torch.linspace(-100, 100, model.config.vocab_size).view(1, 1, -1)
        hidden = BaseModelOutputWithPast(last_hidden_state=torch.zeros(1, 1, model.config.hidden_size))
        tried._modules = {**model._modules, model.base_model_prefix: _Says(hidden), str(head): _Says(logits)}
        given: Tensor = tried(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
    except Exception as error:  # the code is any model's, and what it stumbles over anything
        return f"cannot be tried without its blocks ({type(error).__name__}: {error})"
    return None if torch.equal(given, logits) else "scales or caps its logits behind the head"
