"""The gradient norm over several meshes at once: the norm of the full tensors, each counted once."""

import math

import pytest
import torch

from trainer.testing import run_ranks

MAX_NORM = 0.7


def full_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = {"one": (7, 3), "two": (5, 4), "hybrid": (6, 2), "replicated": (3, 3), "plain": (4,), "scalar": (), "tiny": (2, 2)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def distributed_gradients(meshes):
    """The same gradients as parameters' gradients: sharded over all 4 ranks, over 2 of them, over both axes, replicated, and plain."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    flat, grid = meshes
    places = {
        "one": (flat, [Shard(0)]),  # 7 rows on 4 ranks: uneven
        "two": (grid, [Replicate(), Shard(1)]),
        "hybrid": (grid, [Shard(0), Shard(1)]),
        "replicated": (grid, [Replicate(), Replicate()]),
        "tiny": (flat, [Shard(0)]),  # 2 rows on 4 ranks: two hold nothing
    }
    for name, full in full_gradients().items():
        gradient = distribute_tensor(full, *places[name]) if name in places else full
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient
        yield name, parameter
    yield "unused", torch.nn.Parameter(torch.zeros(3))


def clipped_gradients(max_norm):
    """On a rank: the global norm, and every gradient in full after clipping."""
    import os

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from trainer.distributed.grad_norm import Gradients
    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group

    device = torch.device("cpu")
    start_process_group(read_launch(os.environ), device, 60)
    meshes = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    parameters = dict(distributed_gradients(meshes))
    gradients = Gradients([(parameter, 4) for parameter in parameters.values()], device)
    squared = gradients.local_squared_norm()
    assert squared.dtype == torch.float64 and squared.shape == ()
    dist.all_reduce(squared)
    norm = squared.sqrt()
    gradients.clip(norm, max_norm)
    clipped = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return norm.item(), {name: (g.full_tensor() if isinstance(g, DTensor) else g).numpy() for name, g in clipped.items()}


@pytest.mark.parametrize("max_norm", [MAX_NORM, 1e6])
def test_norm_and_clipping_are_those_of_the_full_tensors(max_norm):
    full = full_gradients()
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in full.values()))
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in full.values()]
    for parameter, gradient in zip(parameters, full.values(), strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for seen, clipped in run_ranks(clipped_gradients, 4, max_norm):
        assert seen == pytest.approx(norm, rel=1e-6)
        assert clipped.keys() == full.keys()
        for (name, value), parameter in zip(clipped.items(), parameters, strict=True):
            assert torch.allclose(torch.from_numpy(value), parameter.grad, rtol=1e-6), name
    assert (norm > max_norm) == (max_norm == MAX_NORM)


def copies_of_strided():
    """On a rank: how often each piece of a tensor exists that one axis cuts in the strided way, as FSDP over tensor parallel does."""
    import os

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.placement_types import _StridedShard

    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group
    from trainer.distributed.sharding import num_copies

    start_process_group(read_launch(os.environ), torch.device("cpu"), 60)
    mesh = init_device_mesh("cpu", (2, 2))
    strided = DTensor.from_local(torch.ones(2), mesh, [_StridedShard(0, split_factor=2), Replicate()], run_check=False)
    return num_copies(strided, dist.get_world_size())


def test_strided_shards_are_shards():
    assert run_ranks(copies_of_strided, 4) == [2] * 4


def test_a_gradient_that_is_not_reduced_yet_is_a_bug_of_ours():
    with pytest.raises(AssertionError, match="a gradient is not reduced yet"):
        run_ranks(norm_of_partial, 2)


def norm_of_partial():
    import os

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    from trainer.distributed.grad_norm import Gradients
    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group

    start_process_group(read_launch(os.environ), torch.device("cpu"), 60)
    partial = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Partial()], run_check=False)
    parameter = torch.nn.Parameter(torch.zeros_like(partial.redistribute(placements=partial.placements)))
    parameter.grad = partial
    Gradients([(parameter, 2)], torch.device("cpu")).local_squared_norm()
