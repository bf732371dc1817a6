"""Kernels that are told where documents begin, on the GPU for which they are: what SDPA gives under a mask, forward and backward."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.model.attention import packed_mask
from trainer.model.documents import as_mask, block_mask, boundaries, document_numbers, flex_attention, longest_document, varlen_attention
from trainer.testing import assert_same_curve

LENGTHS = [[100, 1, 27, 128], [256], [3, 200, 53]]
SHAPES = [(8, 8, 64), (8, 2, 64), (6, 2, 128), (4, 4, 256), (4, 4, 8)]
"""Heads of queries and of keys, and how wide they are."""


def attended(kind, dtype, heads, shared, size, causal=True, window=None):
    """Outputs and the gradients of query, key and value of made-up rows."""
    generator = torch.Generator("cuda").manual_seed(0)
    positions = torch.tensor([[place for length in row for place in range(length)] for row in LENGTHS])
    rows, width = positions.shape
    tensors = [
        torch.randn(rows, width, number, size, device="cuda", generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for number in (heads, shared, shared)
    ]
    module = SimpleNamespace(is_causal=causal, training=True, num_key_value_groups=heads // shared)
    inputs = {"input_ids": positions, "position_ids": positions}
    told = {"scaling": size**-0.5, "sliding_window": window, "dropout": 0.0}
    on_device = {name: tensor.cuda() for name, tensor in inputs.items()}
    if kind == "varlen":
        documents = boundaries(inputs)
        found, _ = varlen_attention(module, *tensors, as_mask(documents.cuda(), longest_document(documents)), **told)
    elif kind == "flex":
        found, _ = flex_attention(module, *tensors, block_mask(document_numbers(on_device), causal), **told)
    else:
        mask = packed_mask(on_device["position_ids"], causal)
        if window is not None:
            slots = torch.arange(width, device="cuda")
            mask = mask & (slots[:, None] - slots < window)
        found, _ = sdpa_attention_forward(module, *tensors, mask, **told)
    weights = torch.randn(found.shape, device="cuda", generator=generator)
    grads = torch.autograd.grad((found.float() * weights).sum(), tensors)
    return found.float(), *(grad.float() for grad in grads)


def assert_close(found, exact, rounded):
    """No further from what fp32 gives than three times what SDPA is in the same type; in fp32 itself, 1e-4 of the largest."""
    for ours, right, theirs in zip(found, exact, rounded, strict=True):
        assert (ours - right).abs().max() <= 3 * (theirs - right).abs().max() + 1e-4 * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 16), (False, None)], ids=["causal", "window", "both ways"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_varlen_is_sdpa_under_a_mask(shape, causal, window, dtype):
    found = attended("varlen", dtype, *shape, causal, window)
    assert_close(found, attended("sdpa", torch.float32, *shape, causal, window), attended("sdpa", dtype, *shape, causal, window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_flex_is_sdpa_under_a_mask(shape, causal, dtype):
    found = attended("flex", dtype, *shape, causal)
    assert_close(found, attended("sdpa", torch.float32, *shape, causal), attended("sdpa", dtype, *shape, causal))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta", "bert classes"])
def test_varlen_has_the_curve_of_sdpa(curve, name):
    job = ("run.device=cuda", "precision=bf16")
    told = curve(name, *job, "train.attention=varlen")
    assert_same_curve(told, curve(name, *job, "train.attention=sdpa"), loss=1e-2, grad_norm=5e-2)
    assert_same_curve(told, curve(name, *job), loss=1e-3, grad_norm=1e-2)  # it is what None means here


@pytest.mark.parametrize(("precision", "loss", "grad_norm"), [("fp32", 1e-4, 1e-3), ("bf16", 1e-2, 5e-2)])
@pytest.mark.parametrize("name", ["llama", "bert", "roberta", "bert classes"])
def test_flex_has_the_curve_of_sdpa(curve, name, precision, loss, grad_norm):
    job = ("run.device=cuda", f"precision={precision}", "model.num_heads=2")
    assert_same_curve(curve(name, *job, "train.attention=flex"), curve(name, *job, "train.attention=sdpa"), loss=loss, grad_norm=grad_norm)


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_what_is_computed_again_is_told_again(curve, kernel, recompute):
    if (kernel, recompute) == ("flex", "selective"):
        pytest.skip("refused")
    job = ("run.device=cuda", "precision=bf16", "model.num_heads=2", f"train.attention={kernel}")
    again = curve("llama", *job, f"train.activation_checkpointing={recompute}")
    assert_same_curve(again, curve("llama", *job), loss=1e-3, grad_norm=1e-2)
