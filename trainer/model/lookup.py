"""Which family a model type is of: a row of families.py, or, for other decoders, what transformers itself says of them.

The configs of many decoders plan how they are cut into stages (``base_model_pp_plan``) and split over ranks (``base_model_tp_plan``). Such a
plan names blocks, embeddings and head, which is what a row holds. What no plan says, trainer.model.planned asks the model itself, at the gate.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from trainer.errors import Refused
from trainer.model.families import FAMILIES, Family, Head

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
