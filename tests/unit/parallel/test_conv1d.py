"""GPT-2's layers, one behind the other over two ranks, say what the whole ones say, and so do their gradients."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tests.unit.parallel.test_vocabulary import compared, mesh_of_all
from trainer.testing import run_ranks


def layers_and_whole(sums):
    """On a rank: outputs and gradients of a column-wise and a row-wise layer, and of the same that nobody has split."""
    from torch.distributed.tensor import Replicate

    from trainer.parallel.tensor import COLWISE, ROWWISE, _split_linear

    mesh = mesh_of_all()
    torch.manual_seed(0)
    whole = torch.nn.Sequential(Conv1D(6, 4), torch.nn.GELU(), Conv1D(4, 6))
    torch.nn.init.normal_(whole[2].bias)
    torch.manual_seed(0)
    ours = torch.nn.Sequential(Conv1D(6, 4), torch.nn.GELU(), Conv1D(4, 6))
    torch.nn.init.normal_(ours[2].bias)
    for number, way in ((0, COLWISE), (2, ROWWISE)):
        _split_linear(ours[number], way, mesh, sums)
    given = [torch.linspace(-1, 1, 24).view(2, 3, 4).requires_grad_() for _ in range(2)]
    output, wanted = ours(given[0]), whole(given[1])
    if not sums:
        output = output.redistribute(placements=[Replicate()]).to_local()
    slopes = torch.randn(wanted.shape)
    (output * slopes).sum().backward()
    (wanted * slopes).sum().backward()
    gradients = [(own.grad.full_tensor(), other.grad) for own, other in zip(ours.parameters(), whole.parameters(), strict=True)]
    return compared((output, wanted), (given[0].grad, given[1].grad), *gradients)


@pytest.mark.parametrize("sums", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_whole_layers(sums):
    for pairs in run_ranks(layers_and_whole, 2, sums):
        for ours, theirs in pairs:
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
