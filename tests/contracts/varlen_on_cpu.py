"""Torch's varlen attention on a CPU: its own function, its own autograd, and the formulas where its CUDA kernels would be.

What the kernels ask of their arguments is asserted, so that what passes here passes there. Not fast: one document after another.
"""

from functools import cache

import torch
from torch.nn.attention import varlen

from trainer import contradictions
from trainer.model import kernels
from trainer.testing import train_here

CALLS = []
"""How many documents each forward had."""


@cache
def install():
    """Gives torch's two operations a kernel for the CPU, and lets the gates accept it, in fp32 too."""
    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)


def train_with_varlen(arguments):
    """On a rank: ``train.py`` with those kernels; its exit code, and whether they were called."""
    install()
    allowed = kernels.setting_problem
    kernels.setting_problem = contradictions.setting_problem = lambda kernel, implementation, compute, recompute, device: allowed(
        kernel, implementation, "bf16", recompute, None
    )
    kernels.device_problem = lambda kernel, device: None
    CALLS.clear()
    return train_here(arguments), bool(CALLS)


def documents(query, key, value, starts, longest, scale, window):
    """Yields of each document its slots, the scores (H, n, n) with -inf where nothing is seen, and its keys and values (H, n, D), in fp32."""
    total, num_heads, size = query.shape
    assert key.shape == value.shape and key.shape[0] == total and num_heads % key.shape[1] == 0 and size % 8 == 0
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1 and query.dtype == key.dtype == value.dtype
    assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0 and starts[-1] == total
    assert starts.diff().min() > 0 and starts.diff().max() <= longest, "a kernel would leave slots out"
    behind, ahead = window
    assert (behind, ahead) == (-1, -1) or ahead == 0
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        slots, places = slice(begin, end), torch.arange(end - begin)
        away = places[:, None] - places
        seen = torch.ones_like(away, dtype=torch.bool) if ahead < 0 else away >= 0
        seen = seen if behind < 0 else seen & (away <= behind)
        own, keys, values = (tensor[slots].transpose(0, 1).float() for tensor in (query, key, value))
        keys, values = (tensor.repeat_interleave(num_heads // key.shape[1], 0) for tensor in (keys, values))
        yield slots, (own @ keys.mT * scale).masked_fill(~seen, -torch.inf), own, keys, values


def forward(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None, window_size=None, enable_gqa=False, *rest, **more
):
    """Output, log-sum-exp (H, T) and a state of dropout's generator that nobody reads."""
    assert torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k and is_causal == (list(window_size) == [-1, 0])
    assert enable_gqa or query.shape[1] == key.shape[1]
    CALLS.append(len(cu_seq_q) - 1)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    for slots, found, _, _, values in documents(query, key, value, cu_seq_q, max_q, scale or query.shape[-1] ** -0.5, window_size):
        lse[:, slots] = found.logsumexp(-1)
        out[slots] = (found.softmax(-1) @ values).transpose(0, 1).to(out.dtype)
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def backward(grad_out, query, key, value, out, lse, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, rng_state, scale=None, window_size=None):
    """The gradients of query, key and value (Dao et al., 2022, "FlashAttention", appendix B.2)."""
    scale = scale or query.shape[-1] ** -0.5
    grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
    for slots, found, own, keys, values in documents(query, key, value, cu_seq_q, max_q, scale, window_size):
        weights = (found - lse[:, slots, None]).exp()
        incoming, put_out = (tensor[slots].transpose(0, 1).float() for tensor in (grad_out, out))
        inner = weights * (incoming @ values.mT - (incoming * put_out).sum(-1, keepdim=True)) * scale
        for grad, found_grad in zip(grads, (inner @ keys, inner.mT @ own, weights.mT @ incoming), strict=True):
            shared = found_grad.unflatten(0, (grad.shape[1], -1)).sum(1)
            grad[slots] = shared.transpose(0, 1).to(grad.dtype)
    return tuple(grads)
