"""The chunked head says what the dense one says, and nothing of the size of all logits ever exists."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.model.families import Head
from trainer.model.head import Asked, asking, swap_head
from trainer.types import IGNORE

SLOTS, HIDDEN, WORDS = 24, 8, 97


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives back, or writes into."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        results = function(*arguments, **(named or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor))])
        return results


def head(chunk, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"out": torch.nn.Linear(HIDDEN, WORDS, bias=bias)})
    model.out.weight.data *= 8  # likelihoods far from uniform
    return swap_head(model.bfloat16().to(dtype), Head("out"), chunk)


def answers(linear, added=None):
    """Likelihoods, and the gradients of a sum of them in which each slot has a weight of its own."""
    torch.manual_seed(1)
    hidden = torch.randn(2, SLOTS // 2, HIDDEN).bfloat16().to(linear.weight.dtype).requires_grad_()
    labels = torch.randint(WORDS, (2, SLOTS // 2))
    labels[0, :3] = labels[1, -1] = IGNORE
    with asking(linear, Asked(labels, bias=added)):
        nll = linear(hidden)
    assert nll.dtype == torch.float32
    assert torch.equal(nll == 0, labels.flatten() == IGNORE)
    (nll * torch.linspace(-1, 3, SLOTS)).sum().backward()
    return [nll, hidden.grad, *(parameter.grad for parameter in linear.parameters())]


@pytest.mark.parametrize("chunk", [1, 5, SLOTS, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_likelihoods_and_gradients_are_those_of_the_dense_head(chunk, bias):
    added = torch.linspace(-2, 2, WORDS)[None] if bias else None
    for ours, dense in zip(answers(head(chunk, bias), added), answers(head(None, bias), added), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


def test_bf16_is_no_further_from_the_truth_than_dense_bf16():
    def off(chunk):
        found, truth = answers(head(chunk, dtype=torch.bfloat16)), answers(head(None, dtype=torch.float64))
        assert [tensor.dtype for tensor in found[1:]] == [torch.bfloat16] * 3
        return [float((one.double() - other).detach().norm() / other.norm().detach()) for one, other in zip(found, truth, strict=True)]

    for ours, dense in zip(off(5), off(None), strict=True):
        assert 0 < ours <= 1.1 * dense < 0.02


@pytest.mark.parametrize("places", [False, True])
def test_evaluation_finds_the_same_hits(places):
    hidden, found = torch.randn(2, SLOTS // 2, HIDDEN), []
    for chunk in (5, None):
        linear = head(chunk).eval()
        labels = linear(hidden).argmax(-1)
        labels[:, ::3] = 0
        at = torch.arange(1, SLOTS, 2) if places else None
        asked = Asked(labels.flatten()[at] if places else labels, at)
        with torch.no_grad(), asking(linear, asked):
            linear(hidden)
        assert asked.hits.any() and not asked.hits.all()
        found.append(asked.hits)
    assert torch.equal(*found)


def test_a_batch_without_targets_has_gradients_of_zero():
    linear, hidden = head(4), torch.randn(1, SLOTS, HIDDEN, requires_grad=True)
    with asking(linear, Asked(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))):
        linear(hidden).sum().backward()
    assert not hidden.grad.any() and not linear.weight.grad.any()


def test_what_is_frozen_gets_no_gradient():
    linear = head(4)
    linear.weight.requires_grad_(False)
    with asking(linear, Asked(torch.zeros(1, SLOTS, dtype=torch.int64))):
        linear(torch.randn(1, SLOTS, HIDDEN)).sum().backward()
    assert linear.weight.grad is None and linear.bias.grad.any()


@pytest.mark.parametrize(("chunk", "most"), [(4, max(4 * WORDS, WORDS * HIDDEN)), (None, SLOTS * WORDS)])
def test_nothing_is_larger_than_a_chunk_of_logits_or_the_weight(chunk, most):
    with Largest() as largest:
        answers(head(chunk))
    assert largest.numel == most
