"""What the framework must know of each transformer family: where its blocks and its output head are."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import Refused


@dataclass(frozen=True)
class Family:
    """The places in a transformers model that parallelism cuts and wraps.

    Attributes:
        name: as it appears in tables and messages.
        blocks: dotted path of the list of transformer blocks.
        head: dotted path of the output head, an ``nn.Linear``.
        max_positions: field of the transformers config that holds the longest sequence.
    """

    name: str
    blocks: str
    head: str
    max_positions: str


LLAMA_LIKE = Family("Llama-like", blocks="model.layers", head="lm_head", max_positions="max_position_embeddings")
GPT2 = Family("GPT-2", blocks="transformer.h", head="lm_head", max_positions="n_positions")

FAMILIES = {"llama": LLAMA_LIKE, "mistral": LLAMA_LIKE, "qwen2": LLAMA_LIKE, "qwen3": LLAMA_LIKE, "gpt2": GPT2}
"""Family by the ``model_type`` of a transformers config."""


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``; raises ``Refused`` for one that nobody has described yet."""
    if model_type not in FAMILIES:
        raise Refused(
            f"model: transformers model type '{model_type}' is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "A new one needs a row in trainer/model/families.py."
        )
    return FAMILIES[model_type]
