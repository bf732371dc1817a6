"""Encoders: BERT and RoBERTa from a random initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.model.config import Model, heads_problems
from trainer.schema import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trainer.types import Vocabulary


@dataclass
class Bert(Model):
    """A BERT encoder: LayerNorm after each sublayer, learned positions, GELU, tied embeddings. All dropouts 0 unless set."""

    hidden_size: int = setting(128, "width of the residual stream", minimum=1, aliases=("d_model", "dim"))
    num_layers: int = setting(4, "encoder blocks", minimum=1, aliases=("num_hidden_layers", "depth"))
    num_heads: int = setting(4, "attention heads", minimum=1, aliases=("num_attention_heads",))
    intermediate_size: int = setting(512, "width of the feed-forward block", minimum=1, aliases=("ffn_dim",))
    max_positions: int = setting(512, "longest sequence", minimum=1, aliases=("max_position_embeddings", "block_size"))
    dropout: float = setting(
        0.0,
        "dropout probability on embeddings, attention weights and residuals",
        minimum=0,
        below=1,
        aliases=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    )
    initializer_range: float = setting(0.02, "standard deviation of new weights", above=0)

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        return heads_problems(self)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import BertConfig

        return BertConfig(max_position_embeddings=self.max_positions, **self._fields(), **vocabulary.model_fields())

    def _fields(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "initializer_range": self.initializer_range,
        }


@dataclass
class Roberta(Bert):
    """A RoBERTa encoder: BERT without segments, whose positions begin after the padding id. All dropouts 0 unless set."""

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import RobertaConfig

        fields = {**vocabulary.model_fields(), "pad_token_id": vocabulary.fill}
        return RobertaConfig(
            max_position_embeddings=self.max_positions + vocabulary.fill + 1, type_vocab_size=1, **self._fields(), **fields
        )
