"""Encoder-decoders: T5 and BART from a random initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.model.config import Model, heads_problems
from trainer.schema import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trainer.types import Vocabulary


@dataclass
class T5(Model):
    """A T5 encoder-decoder: RMSNorm, relative position bias, tied embeddings. All dropouts 0 unless set."""

    hidden_size: int = setting(128, "width of the residual stream", minimum=1, aliases=("d_model", "dim"))
    num_layers: int = setting(4, "encoder blocks", minimum=1, aliases=("num_hidden_layers", "depth", "encoder_layers"))
    num_decoder_layers: int | None = setting(
        None, "decoder blocks; None: as many as encoder blocks", minimum=1, aliases=("decoder_layers",)
    )
    num_heads: int = setting(4, "attention heads", minimum=1, aliases=("num_attention_heads",))
    head_size: int | None = setting(None, "width of one head; None: hidden_size / num_heads", minimum=1, aliases=("d_kv", "head_dim"))
    intermediate_size: int = setting(512, "width of the feed-forward block", minimum=1, aliases=("d_ff", "ffn_dim"))
    feed_forward: str = setting("relu", "feed-forward block: relu as in T5, gated-gelu as in T5 1.1", choices=("relu", "gated-gelu"))
    tie_embeddings: bool = setting(True, "the output head shares the embedding's weight", aliases=("tie_word_embeddings",))
    dropout: float = setting(0.0, "dropout probability", minimum=0, below=1, aliases=("dropout_rate",))

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        return [] if self.head_size else heads_problems(self)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import T5Config

        fields = {**vocabulary.model_fields(), "pad_token_id": vocabulary.fill}
        return T5Config(
            d_model=self.hidden_size,
            num_layers=self.num_layers,
            num_decoder_layers=self.num_decoder_layers or self.num_layers,
            num_heads=self.num_heads,
            d_kv=self.head_size or self.hidden_size // self.num_heads,
            d_ff=self.intermediate_size,
            feed_forward_proj=self.feed_forward,
            dropout_rate=self.dropout,
            tie_word_embeddings=self.tie_embeddings,
            decoder_start_token_id=vocabulary.fill,
            **fields,
        )


@dataclass
class Bart(Model):
    """A BART encoder-decoder: LayerNorm after each sublayer, learned positions, GELU, tied embeddings. All dropouts 0 unless set."""

    hidden_size: int = setting(128, "width of the residual stream", minimum=1, aliases=("d_model", "dim"))
    num_layers: int = setting(4, "encoder blocks", minimum=1, aliases=("num_hidden_layers", "depth", "encoder_layers"))
    num_decoder_layers: int | None = setting(
        None, "decoder blocks; None: as many as encoder blocks", minimum=1, aliases=("decoder_layers",)
    )
    num_heads: int = setting(4, "attention heads", minimum=1, aliases=("num_attention_heads",))
    intermediate_size: int = setting(512, "width of the feed-forward block", minimum=1, aliases=("encoder_ffn_dim", "decoder_ffn_dim"))
    max_positions: int = setting(1024, "longest sequence", minimum=1, aliases=("max_position_embeddings", "block_size"))
    dropout: float = setting(0.0, "dropout probability on embeddings and residuals", minimum=0, below=1)
    attention_dropout: float = setting(0.0, "dropout probability on attention weights", minimum=0, below=1)
    initializer_range: float = setting(0.02, "standard deviation of new weights", above=0, aliases=("init_std",))

    def problems(self) -> list[str]:
        """Contradictions inside this model, one sentence each."""
        return heads_problems(self)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The transformers config of this model for a tokenizer's vocabulary."""
        from transformers import BartConfig

        fields = {**vocabulary.model_fields(), "pad_token_id": vocabulary.fill}
        return BartConfig(
            d_model=self.hidden_size,
            encoder_layers=self.num_layers,
            decoder_layers=self.num_decoder_layers or self.num_layers,
            encoder_attention_heads=self.num_heads,
            decoder_attention_heads=self.num_heads,
            encoder_ffn_dim=self.intermediate_size,
            decoder_ffn_dim=self.intermediate_size,
            max_position_embeddings=self.max_positions,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            init_std=self.initializer_range,
            decoder_start_token_id=vocabulary.eos if vocabulary.eos is not None else vocabulary.fill,
            forced_eos_token_id=vocabulary.eos,
            **fields,
        )
