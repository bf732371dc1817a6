"""What each slot may attend to, decided on the host.

Given position ids, transformers finds out by itself whether rows are packed, and given a padding mask whether anything is padded, but it
asks the device, and every forward then waits for everything queued before it. Here the question is answered before the batch is sent, and
the model is told: by a mask that it takes as it is, or by an attention implementation that has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.model.families import Family

CAUSAL = "isotrain_causal"
"""SDPA under a name for which transformers makes no mask: a row is one causal sequence."""

_IMPLEMENTATION = "_attn_implementation_internal"
"""Where a transformers config keeps what ``config._attn_implementation`` gives."""

AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def drop_plain(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out what says nothing: ``position_ids`` where no document begins inside a row, ``lengths`` where all rows are full.

    Args:
        inputs: of one micro-batch, on the CPU.
    """
    plain = set()
    if (positions := inputs.get("position_ids")) is not None and positions.numpy()[:, 1:].all():  # no 0 after the first slot
        plain.add("position_ids")
    if (lengths := inputs.get("lengths")) is not None and (lengths.numpy() == inputs["input_ids"].shape[1]).all():
        plain.add("lengths")
    return {name: tensor for name, tensor in inputs.items() if name not in plain}


def packed_mask(positions: Tensor, causal: bool = True) -> Tensor:
    """What each slot may attend to: its own document, and of it, if ``causal``, the slots up to itself.

    Args:
        positions: int64 (B, L); 0 where a document begins.
        causal: whether later slots are hidden.

    Returns:
        bool (B, 1, L, L), True where query (third) may see key (fourth).
    """
    document = (positions == 0).cumsum(-1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same.tril_() if causal else same


def padded_mask(lengths: Tensor, width: int) -> Tensor:
    """The mask under which every slot attends to the first ``lengths`` (B,) of ``width`` slots: bool (B, 1, 1, L)."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None, None, :]


@contextmanager
def causal_rows(config: PreTrainedConfig) -> Iterator[None]:
    """While inside, a model with this config and SDPA attention takes each row for one causal sequence."""
    fields = vars(config)  # the property's own setter walks through sub-configs, twice in every forward
    before = fields[_IMPLEMENTATION]
    fields[_IMPLEMENTATION] = CAUSAL
    try:
        yield
    finally:
        fields[_IMPLEMENTATION] = before


def attends_fully(config: PreTrainedConfig) -> bool:
    """Whether all layers share the one mask that is made here: SDPA without sliding windows. Others are left to transformers."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config._attn_implementation == "sdpa" and kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


@contextmanager
def attending(
    config: PreTrainedConfig, family: Family, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Iterator[dict[str, Tensor]]:
    """Yields what the model is to be called with while inside, so that documents stay apart and padding is not seen.

    Args:
        config: the model's.
        family: the model's.
        inputs: with ``position_ids`` (B, L) where, and only where, rows are packed, and ``lengths`` (B,) where they are padded.
        dtype: of the attention scores.
    """
    told = {name: tensor for name, tensor in inputs.items() if name != "lengths"}
    if "attention_mask" in told:
        yield told
    elif not family.causal:
        yield told | _seen_both_ways(config, family, inputs, dtype)
    elif not attends_fully(config):
        yield told
    elif "position_ids" in told:
        yield told | {"attention_mask": packed_mask(told["position_ids"])}
    else:
        with causal_rows(config):
            yield told


def _seen_both_ways(config: PreTrainedConfig, family: Family, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The positions of a model whose ``input_ids`` see each other both ways, and its mask; none where all rows are full and plain."""
    positions, lengths = inputs.get("position_ids"), inputs.get("lengths")
    told: dict[str, Tensor] = {}
    if lengths is not None:
        told["attention_mask"] = padded_mask(lengths, inputs["input_ids"].shape[1])
    if positions is not None:
        told["position_ids"] = positions + family.offset(config)
        packed = packed_mask(positions, causal=False)
        told["attention_mask"] = packed if lengths is None else packed & told["attention_mask"]
    elif family.first_position is not None:  # left to itself, the model would skip the padding id inside a text too
        slots = torch.arange(inputs["input_ids"].shape[1], device=inputs["input_ids"].device)
        told["position_ids"] = slots[None] + family.offset(config)
    if "attention_mask" in told and config._attn_implementation != "sdpa":  # the others add their mask to the scores
        seen = torch.zeros((), dtype=dtype, device=told["attention_mask"].device)
        told["attention_mask"] = seen.where(told["attention_mask"], torch.finfo(dtype).min)
    return told
