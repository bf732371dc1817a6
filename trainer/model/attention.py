"""How packed rows are kept apart, decided on the host.

Given position ids, transformers finds out by itself whether rows are packed, but it asks the device, and every forward then waits for
everything queued before it. Here the question is answered before the batch is sent, and the model is told: by a mask that it takes as it
is, or by an attention implementation that has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

CAUSAL = "isotrain_causal"
"""SDPA under a name for which transformers makes no mask: a row is one causal sequence."""

_IMPLEMENTATION = "_attn_implementation_internal"
"""Where a transformers config keeps what ``config._attn_implementation`` gives."""

AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def drop_plain_positions(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves ``position_ids`` out where no document begins inside a row, so that they say nothing; ``inputs`` are on the CPU."""
    positions = inputs.get("position_ids")
    if positions is None or positions.numpy()[:, 1:].all():  # no 0 after the first slot
        return {name: tensor for name, tensor in inputs.items() if name != "position_ids"}
    return inputs


def packed_mask(positions: Tensor) -> Tensor:
    """What each slot may attend to: the slots up to itself since its position was 0.

    Args:
        positions: int64 (B, L); 0 where a document begins.

    Returns:
        bool (B, 1, L, L), True where query (third) may see key (fourth).
    """
    document = (positions == 0).cumsum(-1)
    return (document[:, None, :, None] == document[:, None, None, :]).tril_()


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
def told_of_packing(config: PreTrainedConfig, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yields the inputs of a model that ``attends_fully`` for rows that are packed where, and only where, ``position_ids`` are given."""
    positions = inputs.get("position_ids")
    if "attention_mask" in inputs:
        yield inputs
    elif positions is not None:
        yield {**inputs, "attention_mask": packed_mask(positions)}
    else:
        with causal_rows(config):
            yield inputs
