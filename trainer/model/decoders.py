"""Decoders: Llama and GPT-2 from a random initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.model.config import Model, heads_problems
from trainer.schema import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trainer.types import Vocabulary


@dataclass
class Llama(Model):
    """A Llama-like decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. All dropouts 0."""

    hidden_size: int = setting(128, "width of the residual stream", minimum=1, aliases=("d_model", "n_embd", "dim"))
    num_layers: int = setting(4, "decoder blocks", minimum=1, aliases=("num_hidden_layers", "n_layer", "depth"))
    num_heads: int = setting(4, "attention heads", minimum=1, aliases=("num_attention_heads", "n_head"))
    num_kv_heads: int | None = setting(None, "key-value heads; None: as many as heads", minimum=1, aliases=("num_key_value_heads",))
    intermediate_size: int = setting(384, "width of the feed-forward block", minimum=1, aliases=("ffn_dim", "n_inner"))
    max_positions: int = setting(2048, "longest sequence", minimum=1, aliases=("max_position_embeddings", "n_positions", "block_size"))
    rope_theta: float = setting(10000.0, "base of the rotary frequencies", above=0)
    tie_embeddings: bool = setting(True, "the output head shares the embedding's weight", aliases=("tie_word_embeddings",))
    attention_dropout: float = setting(0.0, "dropout probability on attention weights", minimum=0, below=1)
    initializer_range: float = setting(0.02, "standard deviation of new weights", above=0)

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        found = heads_problems(self)
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            found.append(f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}.")
        return found

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads or self.num_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
            attention_dropout=self.attention_dropout,
            initializer_range=self.initializer_range,
            **vocabulary.model_fields(),
        )


@dataclass
class Gpt2(Model):
    """A GPT-2 decoder: LayerNorm, learned positions, GELU, tied embeddings. All dropouts 0 unless set."""

    hidden_size: int = setting(128, "width of the residual stream", minimum=1, aliases=("d_model", "n_embd", "dim"))
    num_layers: int = setting(4, "decoder blocks", minimum=1, aliases=("num_hidden_layers", "n_layer", "depth"))
    num_heads: int = setting(4, "attention heads", minimum=1, aliases=("num_attention_heads", "n_head"))
    max_positions: int = setting(1024, "longest sequence", minimum=1, aliases=("max_position_embeddings", "n_positions", "block_size"))
    dropout: float = setting(
        0.0,
        "dropout probability on embeddings, attention weights and residuals",
        minimum=0,
        below=1,
        aliases=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    )
    initializer_range: float = setting(0.02, "standard deviation of new weights", above=0)

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        return heads_problems(self)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import GPT2Config

        return GPT2Config(
            n_embd=self.hidden_size,
            n_layer=self.num_layers,
            n_head=self.num_heads,
            n_positions=self.max_positions,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            initializer_range=self.initializer_range,
            **vocabulary.model_fields(),
        )
