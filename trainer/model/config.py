"""What every model preset has. Vocabulary and special ids are the tokenizer's and never appear in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.schema import setting

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from trainer.types import Vocabulary


@dataclass
class Model:
    """What every model has; a random initialisation unless it is ``pretrained``."""

    attention: str = setting(
        "sdpa",
        "attention implementation of transformers; both keep packed documents apart",
        choices=("sdpa", "eager"),
        aliases=("attn_implementation",),
    )

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        return []

    def fetch(self) -> dict[str, Path]:
        """Local folders of pretrained weights, by the prefix of the names that they give; empty for a random initialisation.

        Raises:
            Refused: they are not here and cannot be fetched.
        """
        return {}

    def config_for(self, vocabulary: Vocabulary, folders: dict[str, Path]) -> PreTrainedConfig:
        """The transformers config of this model, for a tokenizer's vocabulary or as ``folders`` say."""
        return self.build_config(vocabulary)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        raise NotImplementedError(f"{type(self).__name__} is a model config without build_config()")


def heads_problems(model: Any) -> list[str]:
    """A sentence where the width cannot be divided among the attention heads."""
    if model.hidden_size % model.num_heads:
        return [f"model.hidden_size={model.hidden_size} is not a multiple of model.num_heads={model.num_heads}."]
    return []
