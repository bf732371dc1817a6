"""What each slot may attend to, decided on the host.

Given position ids, transformers finds out by itself whether rows are packed, and given a padding mask whether anything is padded, but it
asks the device, and every forward then waits for everything queued before it. Here the question is answered before the batch is sent, and
the model is told: by a mask that it takes as it is, or by an attention implementation that has none. Kernels that are told of documents
instead of masks are in documents.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.model.documents import FLEX, IMPLEMENTATIONS, block_mask, document_numbers
from trainer.model.families import Family
from trainer.model.kernels import has_windows
from trainer.types import Batch

CAUSAL = "isotrain_causal"
"""SDPA under a name for which transformers makes no mask: a row is one causal sequence."""

_IMPLEMENTATION = "_attn_implementation_internal"
"""Where a transformers config keeps what ``config._attn_implementation`` gives."""

_OURS = ("lengths", "documents")
"""Inputs that no model knows."""

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


def without_plain(collate: Callable[..., Batch]) -> Callable[..., Batch]:
    """``collate`` whose micro-batches leave out what says nothing: whoever makes them looks, ahead of the step where loading is ahead."""

    def collate_told(samples: Any) -> Batch:
        batch = collate(samples)
        return replace(batch, inputs=drop_plain(batch.inputs))

    return collate_told


def packed_mask(positions: Tensor, causal: bool = True) -> Tensor:
    """What each slot may attend to: its own document, and of it, if ``causal``, the slots up to itself.

    Args:
        positions: int64 (B, L); 0 where a document begins.
        causal: whether later slots are hidden.

    Returns:
        bool (B, 1, L, L), True where query (third) may see key (fourth).
    """
    document = (positions == 0).cumsum(-1).unsqueeze(1)
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    return same.tril_() if causal else same


def padded_mask(lengths: Tensor, width: int) -> Tensor:
    """The mask under which every slot attends to the first ``lengths`` (B,) of ``width`` slots: bool (B, 1, 1, L)."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None, None, :]


def attend_with(kernel: str, config: PreTrainedConfig) -> None:
    """Lets a model of this config attend with a kernel of ``trainer.model.kernels``, from now on; ``sdpa`` leaves it as it was built."""
    if kernel != "sdpa":
        vars(config)[_IMPLEMENTATION] = IMPLEMENTATIONS[kernel]


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
    """Whether all layers share the one mask that is made here: no eager attention, no sliding windows. Others are left to transformers."""
    return config._attn_implementation in ("sdpa", FLEX) and not has_windows(config)


class Attending:
    """How a model is called so that documents stay apart and padding is not seen. Its config is asked once: transformers' answer slowly.

    Args:
        config, family: the model's.
        dtype: of the attention scores.
    """

    def __init__(self, config: PreTrainedConfig, family: Family, dtype: torch.dtype = torch.float32):
        self._config, self._family, self._dtype = config, family, dtype
        self._fully = attends_fully(config)

    @contextmanager
    def to(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yields what the model is to be called with while inside.

        Args:
            inputs: with ``position_ids`` (B, L) where, and only where, rows are packed, ``lengths`` (B,) where they are padded, and
                ``documents`` (trainer.model.documents.as_mask) where, and only where, the kernel wants to know where they begin.
        """
        told = {name: tensor for name, tensor in inputs.items() if name not in _OURS}
        if "attention_mask" in told:
            yield told
        elif "documents" in inputs:
            yield told | _positions(self._config, self._family, inputs) | {"attention_mask": inputs["documents"]}
        elif not self._family.causal:
            yield told | _positions(self._config, self._family, inputs) | _seen_both_ways(self._config, inputs, self._dtype)
        elif not self._fully:
            yield told
        elif "position_ids" in told:
            yield told | {"attention_mask": _packed(self._config, inputs, causal=True)}
        else:
            with causal_rows(self._config):
                yield told


def _positions(config: PreTrainedConfig, family: Family, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The positions as the model counts them; none where it counts them like that by itself."""
    if (positions := inputs.get("position_ids")) is not None:
        return {"position_ids": positions + family.offset(config)}
    if family.first_position is None:
        return {}
    # Left to itself, the model would skip the padding id inside a text too.
    slots = torch.arange(inputs["input_ids"].shape[1], device=inputs["input_ids"].device)
    return {"position_ids": slots[None] + family.offset(config)}


def _packed(config: PreTrainedConfig, inputs: dict[str, Tensor], causal: bool) -> Any:
    """The mask of packed rows, as the model's attention takes it."""
    if config._attn_implementation == FLEX:
        return block_mask(document_numbers(inputs), causal)
    return packed_mask(inputs["position_ids"], causal)


def _seen_both_ways(config: PreTrainedConfig, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """The mask of a model whose ``input_ids`` see each other both ways; none where all rows are full and plain."""
    positions, lengths = inputs.get("position_ids"), inputs.get("lengths")
    if positions is None and lengths is None:
        return {}
    if config._attn_implementation == FLEX:
        return {"attention_mask": _packed(config, inputs, causal=False)}
    masks = [] if positions is None else [packed_mask(positions, causal=False)]
    if lengths is not None:
        masks.append(padded_mask(lengths, inputs["input_ids"].shape[1]))
    mask = reduce(and_, masks)
    if config._attn_implementation != "sdpa":  # the others add their mask to the scores
        seen = torch.zeros((), dtype=dtype, device=mask.device)
        mask = seen.where(mask, torch.finfo(dtype).min)
    return {"attention_mask": mask}
