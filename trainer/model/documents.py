"""Attention that is told where documents begin, in place of a mask over all pairs of slots: torch's varlen kernel, or its FlexAttention.

Both are registered with transformers under names of ours. A model whose config bears one of them takes what is made here for its attention
mask: it travels through blocks, stages and recomputation as any mask does. Given none, or one of transformers' own, as ``generate`` makes
them, they are SDPA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.types import Batch

VARLEN, FLEX = "isotrain_varlen", "isotrain_flex"
IMPLEMENTATIONS = {"varlen": VARLEN, "flex": FLEX}
"""What a transformers config calls them, by value of ``train.attention``."""
_ROUNDING = 0.05
"""By how much two kernels may differ in bf16, of the largest number: a mask that is wrong changes a quarter of it and more."""


def with_documents(collate: Callable[..., Batch]) -> Callable[..., Batch]:
    """``collate`` whose micro-batches say, in ``documents``, where each document begins: on the host, where it can be seen without waiting."""

    def collate_told(samples: Any) -> Batch:
        batch = collate(samples)
        return replace(batch, inputs=batch.inputs | {"documents": boundaries(batch.inputs)})

    return collate_told


def wants_documents(config: PreTrainedConfig) -> bool:
    """Whether a model of this config is to be told where documents begin."""
    return config._attn_implementation == VARLEN


def boundaries(inputs: dict[str, Tensor]) -> Tensor:
    """Where documents begin in rows that are put end to end, and where the last one ends: int32 (N + 1,).

    What fills up a row counts as a document of its own: nothing sees it, and it sees nothing of others.

    Args:
        inputs: of one micro-batch, on the CPU: ``input_ids`` (B, L), ``position_ids`` where rows are packed, ``lengths`` where they are padded.
    """
    num_rows, width = inputs["input_ids"].shape
    begins = np.zeros((num_rows, width), bool)
    begins[:, 0] = True
    if "position_ids" in inputs:
        begins |= inputs["position_ids"].numpy() == 0
    if "lengths" in inputs:
        lengths = inputs["lengths"].numpy()
        short = np.flatnonzero(lengths < width)
        begins[short, lengths[short]] = True
    return torch.from_numpy(np.append(np.flatnonzero(begins), begins.size).astype(np.int32))


def longest_document(documents: Tensor) -> int:
    """The length of the longest of ``boundaries``, which are on the CPU, rounded up to a power of two: what is compiled for it fits others too.

    At least 2: FlashAttention takes sequences of 1 for the generation of text, and lays their heads out otherwise.
    """
    return 1 << max(1, (int(np.diff(documents.numpy()).max()) - 1).bit_length())


def as_mask(documents: Tensor, longest: int) -> Tensor:
    """What stands for a mask: int32 (1, 1, longest, N + 1), every line of it ``documents`` (N + 1,), none of them copied.

    Of four dims it passes through transformers as it is, its third tells the kernel the longest document without a look at the device.
    """
    return documents.expand(1, 1, longest, -1)


def varlen_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    """Each document by itself, if ``attention_mask`` is ``as_mask``'s; else SDPA.

    Args:
        module: whose attention it is; says whether it is causal, unless ``told`` does.
        query: (B, H, L, D).
        key, value: (B, H, L, D), or of fewer heads, each shared by several of the query's.
        attention_mask: boundaries of documents, or a mask.
        told: what transformers tells each implementation: ``scaling``, ``sliding_window`` (None: none) ...

    Returns:
        (B, L, H, D), as all of them do.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **told)
    assert not told.get("dropout"), "the gate refuses varlen for models that drop attention"
    documents, longest = attention_mask[0, 0, 0], attention_mask.shape[2]
    causal = getattr(module, "is_causal", True) if told.get("is_causal") is None else told["is_causal"]
    behind = -1 if (window := told.get("sliding_window")) is None else window - 1  # transformers counts the slot itself
    num_rows, num_heads, width, size = query.shape
    found = varlen.varlen_attn(
        query.transpose(1, 2).flatten(0, 1),
        key.transpose(1, 2).flatten(0, 1),
        value.transpose(1, 2).flatten(0, 1),
        documents,
        documents,
        longest,
        longest,
        scale=told.get("scaling"),
        window_size=(behind, 0) if causal else (behind, behind),
        enable_gqa=num_heads != key.shape[1],
    )
    assert isinstance(found, Tensor)  # nothing else was asked for
    return found.view(num_rows, width, num_heads, size), None


@cache
def varlen_tried(device: torch.device) -> str | None:
    """What is wrong with the device's varlen kernel, held against SDPA on two small documents, forward and backward; None: nothing.

    A kernel of another build of torch that fails, or computes something else, is then found before a run depends on it.
    """
    module, documents = torch.nn.Module(), torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
    places, apart = torch.arange(12, device=device), torch.arange(12, device=device) >= 5
    seen = (places[:, None] >= places) & (apart[:, None] == apart)
    drawn = torch.randn(3, 1, 2, 12, 64, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    answers = []
    try:
        for attend, mask in ((varlen_attention, as_mask(documents, 8)), (sdpa_attention_forward, seen[None, None])):
            query, key, value = (each.clone().requires_grad_() for each in drawn)
            found, _ = attend(module, query, key, value, mask, is_causal=attend is varlen_attention)
            answers.append([found, *torch.autograd.grad(found.float().square().sum(), (query, key, value))])
    except Exception as error:  # whatever it is, there is another way
        return f"fails ({type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]})"
    far = max(
        float((own - other).detach().float().abs().max() / other.detach().float().abs().max()) for own, other in zip(*answers, strict=True)
    )
    return None if far < _ROUNDING else f"is {far:.0%} off what SDPA computes"


def flex_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **told: Any
) -> tuple[Tensor, Tensor | None]:
    """By torch's FlexAttention, as transformers calls it, if ``attention_mask`` is ``block_mask``'s; else SDPA. Shapes as in ``varlen_attention``."""
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **told)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **told)


def document_numbers(inputs: dict[str, Tensor]) -> Tensor:
    """The document that each slot of packed or padded rows is of, counted within its row: int64 (B, L); -1 for what fills up."""
    ids, positions, lengths = inputs["input_ids"], inputs.get("position_ids"), inputs.get("lengths")
    numbers = torch.zeros_like(ids) if positions is None else (positions == 0).cumsum(-1)
    if lengths is None:
        return numbers
    return numbers.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None], -1)


def block_mask(numbers: Tensor, causal: bool) -> BlockMask:
    """Which blocks of slots see each other: those with slots of one document, and of them, if ``causal``, not the later ones.

    Args:
        numbers: int64 (B, L), the document that each slot is of, counted within its row.
        causal: whether later slots are hidden.
    """

    def sees(row: Tensor, head: Tensor, slot: Tensor, other: Tensor) -> Tensor:
        same = numbers[row, slot] == numbers[row, other]
        return same & (slot >= other) if causal else same

    made = _compiled_block_mask() if numbers.is_cuda else create_block_mask
    return made(sees, numbers.shape[0], None, numbers.shape[1], numbers.shape[1], device=numbers.device)


@cache
def _compiled_block_mask() -> Any:
    """Uncompiled, it would put the mask over all pairs of slots into memory first."""
    return torch.compile(create_block_mask)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(FLEX, flex_attention)
for _name in (VARLEN, FLEX):
    AttentionMaskInterface.register(_name, sdpa_mask)
