"""Embedding and head of which each of two ranks has some words say what the whole ones say, and so do their gradients."""

import os

import pytest
import torch
import torch.nn.functional as F

from trainer.testing import run_ranks
from trainer.types import IGNORE

WORDS, HIDDEN, RANKS = 7, 5, 2
"""An odd number of words: the first rank has 4, the second 3."""
LABELS = [0, 3, IGNORE, 4, 6, IGNORE, 3, 5]


def mesh_of_all():
    from torch.distributed.device_mesh import init_device_mesh

    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group

    launch = read_launch(os.environ)
    start_process_group(launch, torch.device("cpu"), 60)
    return init_device_mesh("cpu", (launch.world_size,), mesh_dim_names=("tensor",))


def split(module, kind, mesh):
    """The module as one of ``kind``, its rows spread over the ranks."""
    from torch.distributed.tensor import Shard, distribute_tensor

    module.__class__ = kind
    for name, parameter in list(module.named_parameters()):
        module.register_parameter(name, torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    return module


def compared(*pairs):
    return [(ours.detach().tolist(), theirs.detach().tolist()) for ours, theirs in pairs]


def head_and_whole(has_bias, added, chunk):
    """On a rank: what the split head and a whole one make of the same: logits, likelihoods, gradients, hits."""
    from trainer.model.head import Asked, asking
    from trainer.parallel.vocabulary import ShardedHead

    mesh = mesh_of_all()
    torch.manual_seed(0)
    linear, hidden, labels = torch.nn.Linear(HIDDEN, WORDS, bias=has_bias), torch.randn(2, 4, HIDDEN), torch.tensor(LABELS).view(2, 4)
    whole = [parameter.detach().clone().requires_grad_() for parameter in linear.parameters()]
    later = torch.randn(1, WORDS) if added else None
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    head = split(linear, ShardedHead, mesh)
    head.asked, head.chunk = None, chunk
    logits, plain = head(hidden), F.linear(hidden, *whole)
    labels[0, 0] = (plain + (later if added else 0))[0, 0].argmax()  # one at least is right
    asked = Asked(labels, bias=later)
    with asking(head, asked):
        nll = head(ours)
        assert asked.hits is None, "nobody asks for them in training"
        head.eval()(hidden)
    slopes = torch.linspace(0.5, 2, labels.numel())
    (nll * slopes).sum().backward()
    expected = F.linear(theirs, *whole) + (later if added else 0)
    wanted = F.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    (wanted * slopes).sum().backward()
    gradients = [(own.grad.full_tensor(), other.grad) for own, other in zip(head.parameters(), whole, strict=True)]
    hits = [(asked.hits, expected.argmax(-1) == labels)]
    return compared((logits, plain), (nll, wanted), (ours.grad, theirs.grad), *gradients, *hits)


@pytest.mark.parametrize("chunk", [None, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("has_bias", "added"), [pytest.param(False, False, marks=pytest.mark.slow), (True, True)])
def test_the_likelihood_and_its_gradients_are_those_of_all_words(has_bias, added, chunk):
    for pairs in run_ranks(head_and_whole, RANKS, has_bias, added, chunk):
        for ours, theirs in pairs:
            torch.testing.assert_close(torch.tensor(ours).double(), torch.tensor(theirs).double(), rtol=1e-5, atol=1e-6)
        likelihoods = torch.tensor(pairs[1][0]).flatten()
        assert [value == 0 for value in likelihoods] == [label == IGNORE for label in LABELS]
        assert {False, True} == {hit for row in pairs[-1][0] for hit in row}, "a head that is never right, or always, proves nothing"


def ties(chunk):
    """On a rank: which labels the head calls likeliest, where words of both ranks are equally likely."""
    from trainer.model.head import Asked, asking
    from trainer.parallel.vocabulary import ShardedHead

    mesh = mesh_of_all()
    linear = torch.nn.Linear(1, WORDS, bias=False)
    linear.weight.data = torch.tensor([0.0, 1, 1, 0, 1, 1, 0])[:, None]  # words 1, 2 of the first rank; 4, 5 of the second
    head = split(linear, ShardedHead, mesh).eval()
    head.chunk = chunk
    asked = Asked(torch.arange(WORDS))
    with asking(head, asked):
        head(torch.ones(WORDS, 1))
    return asked.hits.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 2])
def test_of_equally_likely_words_the_first_counts_as_argmax_has_it(chunk):
    assert run_ranks(ties, RANKS, chunk) == [[word == 1 for word in range(WORDS)]] * RANKS


def embedding_and_whole(padding, scale):
    """On a rank: what the split embedding and a whole one make of the same ids, and the gradients of both."""
    from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

    from trainer.parallel.vocabulary import sharded

    mesh = mesh_of_all()
    torch.manual_seed(0)
    whole = torch.nn.Embedding(WORDS, HIDDEN, padding_idx=padding)
    mine = torch.nn.Embedding(WORDS, HIDDEN, padding) if scale == 1 else BartScaledWordEmbedding(WORDS, HIDDEN, padding, scale)
    mine.weight.data.copy_(whole.weight)
    ids = torch.tensor([[0, 3, 4, 6], [3, 1, 1, 5]])
    slopes = torch.randn(2, 4, HIDDEN)
    ours, theirs = split(mine, sharded(type(mine)), mesh)(ids), whole(ids) * scale
    (ours * slopes).sum().backward()
    (theirs * slopes).sum().backward()
    return compared((ours, theirs), (mine.weight.grad.full_tensor(), whole.weight.grad))


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "scale"), [(None, 1), (1, 1), (5, 3.0)])
def test_embeddings_and_their_gradients_are_those_of_all_words(padding, scale):
    for pairs in run_ranks(embedding_and_whole, RANKS, padding, scale):
        for ours, theirs in pairs:
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-6)
        gradient = torch.tensor(pairs[1][0])
        assert padding is None or not gradient[padding].any()
        assert gradient[3].any() and gradient[4].any()
