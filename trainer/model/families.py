"""What the framework must know of each transformer family: where its blocks and its heads are, and how it takes positions and padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

from trainer.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Head:
    """The end of a model for one task.

    Attributes:
        linear: dotted path of the ``nn.Linear`` whose logits are scored against labels; None: the objective takes the logits.
        block: dotted path of the module that turns hidden states into logits, which is asked at target places only; None: ``linear``.
        bias: dotted path of a buffer that the model adds to the logits after ``linear``.
        new: parts of names of parameters that a pretrained folder may lack, because the task is new to it.
    """

    linear: str | None
    block: str | None = None
    bias: str | None = None
    new: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """The places in a transformers model that parallelism cuts and wraps.

    Attributes:
        name: as it appears in tables and messages.
        blocks: dotted paths of the lists of transformer blocks.
        heads: by task, as objectives name it.
        max_positions: dotted fields of the transformers config that hold the longest sequence, the shortest of them counts; none: no limit.
        causal: whether a slot sees only those before it, so that neither padding nor what follows matters to it.
        first_position: field of the config above which positions begin; None: they begin at 0.
        unused: dotted paths of modules that are built but never reached by the loss; they are left out.
        tensor: how tensor parallelism splits linear layers: ``colwise`` or ``rowwise`` by dotted path, in which * stands for a number;
            empty: as the transformers config says.
        fused: of the ``colwise`` ones, those that hold several matrices of one size side by side, such as query, key and value: how many.
        whole: dotted paths, in which * stands for a number, of the modules in blocks that need whole sequences where what flows between them
            is split along the sequence: attention and feed-forward; all others work slot by slot.
        before: for each of ``blocks``, dotted paths of what a sample passes before the first of them: embeddings and their norms. A pipeline
            has it on the stage of that block; empty: the family is not cut into stages.
        carried: dotted paths, below a block, of modules that only the first block of a list has and all of them work with, and by each the
            attribute of its parent that tells of it.
        block_outputs: how many values a block gives back, hidden states first.
    """

    name: str
    blocks: tuple[str, ...]
    heads: dict[str, Head]
    max_positions: tuple[str, ...]
    causal: bool = False
    first_position: str | None = None
    unused: tuple[str, ...] = ()
    tensor: dict[str, str] = field(default_factory=dict)
    fused: dict[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    carried: dict[str, str] = field(default_factory=dict)
    block_outputs: int = 1

    def head(self, task: str) -> Head:
        """Its head for a task; raises ``Refused`` where it has none."""
        if task not in self.heads:
            raise Refused(
                f"objective: the model is a {self.name}, which is trained as {' or '.join(self.heads)} here, not as {task}: "
                "choose another objective or model."
            )
        return self.heads[task]

    def offset(self, config: PreTrainedConfig) -> int:
        """The position of a document's first token."""
        return 0 if self.first_position is None else getattr(config, self.first_position) + 1

    def longest(self, config: PreTrainedConfig) -> int | None:
        """The longest sequence that a model of this config takes; None: any."""
        fields = [reduce(getattr, path.split("."), config) for path in self.max_positions]
        return min(fields) - self.offset(config) if fields else None


def _bert_like(layer: str, attentions: tuple[str, ...] = ("attention",)) -> dict[str, str]:
    """How the tensors of a layer of BERT's are split."""
    colwise = (*(f"{attention}.self.{name}" for attention in attentions for name in ("query", "key", "value")), "intermediate.dense")
    rowwise = (*(f"{attention}.output.dense" for attention in attentions), "output.dense")
    return {f"{layer}.{name}": "colwise" for name in colwise} | {f"{layer}.{name}": "rowwise" for name in rowwise}


LLAMA_LIKE = Family(
    "Llama-like",
    blocks=("model.layers",),
    whole=("model.layers.*.self_attn", "model.layers.*.mlp"),
    before=(("model.embed_tokens",),),
    heads={"causal_lm": Head("lm_head"), "classification": Head(None, new=("score.",))},
    max_positions=("max_position_embeddings",),
    causal=True,
)
GPT2 = Family(
    "GPT-2",
    blocks=("transformer.h",),
    before=(("transformer.wte", "transformer.wpe"),),
    tensor={
        f"transformer.h.*.{name}": way
        for way, names in (("colwise", ("attn.c_attn", "mlp.c_fc")), ("rowwise", ("attn.c_proj", "mlp.c_proj")))
        for name in names
    },
    fused={"transformer.h.*.attn.c_attn": 3},
    whole=("transformer.h.*.attn", "transformer.h.*.mlp"),
    heads={"causal_lm": Head("lm_head"), "classification": Head(None, new=("score.",))},
    max_positions=("n_positions",),
    causal=True,
)
BERT = Family(
    "BERT",
    blocks=("bert.encoder.layer",),
    before=(("bert.embeddings",),),
    tensor=_bert_like("bert.encoder.layer.*"),
    whole=("bert.encoder.layer.*.attention.self", "bert.encoder.layer.*.intermediate"),
    heads={
        "masked_lm": Head("cls.predictions.decoder", block="cls", new=("cls.predictions.",)),
        "classification": Head(None, new=("classifier.", "bert.pooler.")),
    },
    max_positions=("max_position_embeddings",),
)
ROBERTA = Family(
    "RoBERTa",
    blocks=("roberta.encoder.layer",),
    before=(("roberta.embeddings",),),
    tensor=_bert_like("roberta.encoder.layer.*"),
    whole=("roberta.encoder.layer.*.attention.self", "roberta.encoder.layer.*.intermediate"),
    heads={
        "masked_lm": Head("lm_head.decoder", block="lm_head", new=("lm_head.",)),
        "classification": Head(None, new=("classifier.",)),
    },
    max_positions=("max_position_embeddings",),
    first_position="pad_token_id",
)
T5 = Family(
    "T5",
    blocks=("encoder.block", "decoder.block"),
    before=(("shared", "encoder.embed_tokens"), ("decoder.embed_tokens",)),
    carried={"layer.0.SelfAttention.relative_attention_bias": "has_relative_attention_bias"},
    block_outputs=3,
    heads={"seq2seq": Head("lm_head")},
    max_positions=(),
    whole=tuple(
        f"{stack}.block.*.layer.*.{name}"
        for stack in ("encoder", "decoder")
        for name in ("SelfAttention", "EncDecAttention", "DenseReluDense")
    ),
    tensor={
        f"{stack}.block.*.layer.*.{name}": way
        for stack in ("encoder", "decoder")
        for way, names in (
            (
                "colwise",
                (
                    *(f"{kind}.{part}" for kind in ("SelfAttention", "EncDecAttention") for part in "qkv"),
                    "SelfAttention.relative_attention_bias",
                ),
            ),
            ("colwise", ("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1")),
            ("rowwise", ("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo")),
        )
        for name in names
    },
)
BART = Family(
    "BART",
    blocks=("model.encoder.layers", "model.decoder.layers"),
    before=tuple(
        (*more, *(f"model.{stack}.{name}" for name in ("embed_tokens", "embed_positions", "layernorm_embedding")))
        for stack, more in (("encoder", ("model.shared",)), ("decoder", ()))
    ),
    heads={"seq2seq": Head("lm_head", bias="final_logits_bias")},
    max_positions=("max_position_embeddings",),
    whole=tuple(f"model.{stack}.layers.*.{name}" for stack in ("encoder", "decoder") for name in ("self_attn", "encoder_attn", "fc1")),
    tensor={
        f"model.{stack}.layers.*.{name}": way
        for stack in ("encoder", "decoder")
        for way, names in (
            ("colwise", (*(f"{kind}.{part}_proj" for kind in ("self_attn", "encoder_attn") for part in "qkv"), "fc1")),
            ("rowwise", ("self_attn.out_proj", "encoder_attn.out_proj", "fc2")),
        )
        for name in names
    },
)
ENCODER_DECODER = Family(
    "encoder-decoder of two BERTs",
    blocks=("encoder.encoder.layer", "decoder.bert.encoder.layer"),
    before=(("encoder.embeddings",), ("decoder.bert.embeddings",)),
    tensor=_bert_like("encoder.encoder.layer.*") | _bert_like("decoder.bert.encoder.layer.*", ("attention", "crossattention")),
    whole=(
        *(f"encoder.encoder.layer.*.{name}" for name in ("attention.self", "intermediate")),
        *(f"decoder.bert.encoder.layer.*.{name}" for name in ("attention.self", "crossattention.self", "intermediate")),
    ),
    heads={
        "seq2seq": Head(
            "decoder.cls.predictions.decoder",
            block="decoder.cls",
            new=("decoder.cls.predictions.", ".crossattention.", "enc_to_dec_proj."),
        )
    },
    max_positions=("encoder.max_position_embeddings", "decoder.max_position_embeddings"),
    unused=("encoder.pooler",),
)

FAMILIES = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gpt2": GPT2,
    "bert": BERT,
    "roberta": ROBERTA,
    "t5": T5,
    "bart": BART,
    "encoder-decoder": ENCODER_DECODER,
}
"""Family by the ``model_type`` of a transformers config."""
