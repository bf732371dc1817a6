"""A linear layer that lets its gathered weight go computes what torch's computes."""

import pytest
import torch
import torch.nn.functional as F

from trainer.engine.gathered import linear_saves_parameters


def results(dtype, shape, bias):
    torch.manual_seed(0)
    hidden = torch.randn(*shape, 48, dtype=dtype, requires_grad=True)
    layer = torch.nn.Linear(48, 80, bias=bias, dtype=dtype)
    out = layer(hidden)
    (out.float() ** 2).sum().backward()
    return [out.detach(), hidden.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 5, 7), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs(dtype, shape, bias):
    expected = results(dtype, shape, bias)
    with linear_saves_parameters():
        found = results(dtype, shape, bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_the_backward_reads_what_the_parameter_holds_then():
    hidden, weight = torch.ones(2, 3, requires_grad=True), torch.nn.Parameter(torch.ones(4, 3))
    before = F.linear
    with linear_saves_parameters():
        out = F.linear(hidden, weight)
        weight.data = torch.empty(0)  # let go after the forward
        weight.data = torch.full((4, 3), 2.0)  # and gathered again
        out.sum().backward()
    assert F.linear is before
    assert torch.equal(hidden.grad, torch.full((2, 3), 8.0))


def test_what_needs_no_gradient_gets_none():
    weight, hidden = torch.nn.Parameter(torch.ones(4, 3), requires_grad=False), torch.ones(2, 3, requires_grad=True)
    with linear_saves_parameters():
        F.linear(hidden, weight, torch.nn.Parameter(torch.zeros(4), requires_grad=False)).sum().backward()
    assert weight.grad is None and hidden.grad is not None
