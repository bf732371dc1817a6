"""Which family a model type is of: a row of families.py, or, for other decoders, what transformers itself says of them.

The configs of many decoders plan how they are cut into stages (``base_model_pp_plan``) and split over ranks (``base_model_tp_plan``). Such a
plan names blocks, embeddings and head, which is what a row holds. What no plan says is looked up in the model, at the gate.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from trainer.errors import Refused
from trainer.model.families import FAMILIES, Family, Head

if TYPE_CHECKING:
    from trainer.model.skeleton import Skeleton

_ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layer that see a slot's own document only, given positions that restart."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configs of mixtures of experts call the number of them."""


@cache
def family_of(model_type: str) -> Family:
    """The family of a ``model_type``; raises ``Refused`` for one that neither we nor transformers have described yet."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    config, built = _decoder(model_type)
    stages = getattr(config, "base_model_pp_plan", None) or {}
    blocks = next((name for name, (inputs, _) in stages.items() if "attention_mask" in inputs), None)
    head = next(iter(getattr(built, "_pp_plan", None) or {}), None)
    if blocks is None or head is None:
        raise Refused(
            f"model: transformers model type '{model_type}' is not supported; supported are {', '.join(sorted(FAMILIES))}, and decoders of which "
            "transformers knows the stages (base_model_pp_plan). A new one needs a row in trainer/model/families.py (docs/adding-a-model-family.md)."
        )
    return _planned(model_type, config, built, blocks, head)


def _decoder(model_type: str) -> tuple[Any, Any]:
    """The classes of a decoder's config and of its model; None where there are none."""
    try:
        config = CONFIG_MAPPING[model_type]
        return config, AutoModelForCausalLM._model_mapping[config]
    except KeyError:
        return None, None


def _planned(model_type: str, config: Any, built: Any, blocks: str, head: str) -> Family:
    """The row of a decoder that transformers has plans for."""
    tensor = getattr(config, "base_model_tp_plan", None) or {}
    why = "keeps a state that runs on from one packed document to the next" if getattr(built, "_is_stateful", False) else None
    if any(way.startswith("moe") for way in tensor.values()) or any(hasattr(config, name) for name in _EXPERTS):
        why = "is a mixture of experts"
    if why:
        raise Refused(f"model: transformers model type '{model_type}' {why}, which is not supported: choose a dense decoder.")
    prefix, parts = built.base_model_prefix, list(config.base_model_pp_plan)
    splits_all = set(tensor.values()) <= {"colwise", "rowwise", "replicated_with_grad_allreduce"}
    split = dict.fromkeys(f"{prefix}.{path.rpartition('.')[0]}" for path, way in tensor.items() if way == "colwise")
    return Family(
        model_type,
        blocks=(f"{prefix}.{blocks}",),
        heads={"causal_lm": Head(head)},
        max_positions=("max_position_embeddings",) if hasattr(config, "max_position_embeddings") else (),
        causal=True,
        whole=tuple(split) if splits_all and len(split) > 1 else (),  # attention and feed-forward
        before=(tuple(f"{prefix}.{part}" for part in parts[: parts.index(blocks)]),),
    )


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
