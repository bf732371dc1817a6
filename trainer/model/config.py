"""What every model preset has. Vocabulary and special ids are the tokenizer's and never appear in one."""

from __future__ import annotations

from dataclasses import dataclass, fields
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


@dataclass
class SampleConfig:
    """How text is generated: the sample at the end of training, and the generate command."""

    prompt: str = setting("", "text to go on from, empty: the beginning of a document; for a seq2seq model the source")
    max_new_tokens: int = setting(128, "most tokens to generate; stops earlier at the end of the document", minimum=1)
    temperature: float | None = setting(
        None, "sampling temperature; 0: greedy; None: 0.9, or greedy with beams and for a seq2seq model", minimum=0
    )
    top_k: int | None = setting(None, "sample among the k likeliest tokens; None: all", minimum=1)
    top_p: float = setting(0.95, "sample among the likeliest tokens that hold this probability", above=0, maximum=1)
    num_beams: int = setting(
        1, "beams of the search for the likeliest text, also in evaluation; 1: no search", minimum=1, aliases=("beams",)
    )


@dataclass
class RunSampleConfig(SampleConfig):
    """How text is generated, and when a run does it."""

    every_evaluation: bool = setting(
        False,
        "let a decoder write a text at each evaluation, kept in metrics.jsonl and report.html; else only at the end",
        aliases=("generate_every", "sample_every"),
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``trainer.model.generation.generate_text``."""
        return {field.name: getattr(self, field.name) for field in fields(SampleConfig)}


def heads_problems(model: Any) -> list[str]:
    """A sentence where the width cannot be divided among the attention heads."""
    if model.hidden_size % model.num_heads:
        return [f"model.hidden_size={model.hidden_size} is not a multiple of model.num_heads={model.num_heads}."]
    return []
