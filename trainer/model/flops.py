"""How much arithmetic a training step is: two operations for each weight and slot forward and four backward, and attention's products.

This is "6N + attention" (Chowdhery et al., 2022, PaLM, appendix B) counted over the weights that are multiplied with: embeddings are looked up and
cost nothing, an encoder's weights see the source and a decoder's the target, and the head sees the slots that have a label. Two conventions
are in use for attention under a causal mask: all pairs of slots, 12 L d T per token, or the half that may be seen, 6 L d T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from trainer.model.families import Family
from trainer.model.skeleton import Skeleton

FORMULA = "6 N + 12 L d T per token"
FORMULA_CAUSAL = "6 N + 6 L d T under a causal mask"
_CROSS = ("EncDecAttention.", "encoder_attn.", "crossattention.self.")
_OF_SOURCE = ("k", "v", "k_proj", "v_proj", "key", "value")
"""What of a decoder's attention to the encoder reads the encoder's slots."""
_HEADS = ("num_attention_heads", "num_heads", "n_head")
_HEAD_DIMS = ("head_dim", "d_kv")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward.

    Attributes:
        slot: for each slot of ``input_ids``, attention's products apart.
        target_slot: for each slot that a decoder writes; 0 without an encoder.
        label: for each slot that has a label: the head's.
        pair: for each pair of slots of ``input_ids`` that attention compares.
        target_pair: for each pair of a decoder's slots.
        cross_pair: for each slot of a decoder and of the encoder.
        causal: whether the last stack sees only half of its pairs.
    """

    slot: int
    target_slot: int
    label: int
    pair: int
    target_pair: int
    cross_pair: int
    causal: bool

    def step(self, rows: float, width: int, target_width: int, labels: int) -> tuple[float, float]:
        """Of all ranks together: with attention to all pairs, and with half of them under a causal mask.

        Args:
            rows: samples.
            width: slots of a row of ``input_ids``.
            target_width: slots that a decoder writes; 0 without an encoder.
            labels: slots of all rows that have a label.
        """
        of_pairs = rows * width * width * self.pair
        of_target_pairs = rows * target_width * target_width * self.target_pair
        rest = rows * (width * self.slot + target_width * (self.target_slot + width * self.cross_pair)) + labels * self.label
        last = (of_target_pairs or of_pairs) if self.causal else 0.0
        return rest + of_pairs + of_target_pairs, rest + of_pairs + of_target_pairs - last / 2


def flops_of(skeleton: Skeleton) -> Flops:
    """Counts what the weights of a model on meta are multiplied with."""
    model, family, head = skeleton.model, skeleton.family, skeleton.head
    stacks, counted = len(family.blocks), {"slot": 0, "target_slot": 0, "label": 0}
    of_head = tuple(filter(None, (head.linear, head.block and f"{head.block}.")))
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            if of_head and path.startswith(of_head):
                counted["label"] += 6 * module.weight.numel()
            elif (stack := _stack(path, family)) is not None:
                reads_source = stack == 0 or (any(name in path for name in _CROSS) and path.rpartition(".")[2] in _OF_SOURCE)
                counted["slot" if reads_source else "target_slot"] += 6 * module.weight.numel()
    layers = [len(model.get_submodule(path)) for path in family.blocks]
    widths = [12 * _width(_config(model.config, side)) for side in ("encoder", "decoder")]
    return Flops(
        **counted,
        pair=layers[0] * widths[0],
        target_pair=layers[1] * widths[1] if stacks == 2 else 0,
        cross_pair=layers[1] * widths[1] if stacks == 2 else 0,
        causal=family.causal or stacks == 2,
    )


def _stack(path: str, family: Family) -> int | None:
    """The list of blocks that a module is in."""
    return next((number for number, blocks in enumerate(family.blocks) if path.startswith(f"{blocks}.")), None)


def _config(config: Any, side: str) -> Any:
    """The config of one of two joined models, or the one that both sides have."""
    own = getattr(config, side, None)
    return config if own is None or isinstance(own, dict) else own


def _width(config: Any) -> int:
    """Of all heads of one attention together."""
    heads = next(value for name in _HEADS if (value := getattr(config, name, None)))
    return heads * next((value for name in _HEAD_DIMS if (value := getattr(config, name, None))), config.hidden_size // heads)
