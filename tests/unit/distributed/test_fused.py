"""Several matrices in one tensor over ranks: where each rank's share lies in the checkpoint's, and what is written and read of it."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trainer.distributed.fused import Fused
from trainer.distributed.sharding import local_part, num_copies
from trainer.testing import run_ranks

ROWS, WIDTH = 5, 2
"""An odd number of rows: FSDP's shards are uneven, and of a bias they begin and end anywhere."""
PARTS = (2, 3)


def checkpoint():
    """By name of a tensor: itself, and the dim along which its parts lie."""
    tensors = {}
    for parts in PARTS:
        size = parts * 4 * WIDTH
        tensors[f"columns{parts}"] = torch.arange(ROWS * size).float().view(ROWS, size), 1, parts
        tensors[f"rows{parts}"] = torch.arange(ROWS * size).float().view(size, ROWS), 0, parts
        tensors[f"bias{parts}"] = torch.arange(size).float(), 0, parts
    return tensors


def split(spread):
    """On a rank: (name, live parameter) of each tensor over a tensor axis of all or half of the ranks, and how it is fused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group

    launch = read_launch(os.environ)
    start_process_group(launch, torch.device("cpu"), 60)
    mesh = init_device_mesh("cpu", (spread, launch.world_size // spread), mesh_dim_names=("shard", "tensor"))
    module = nn.Module()
    for name, (tensor, dim, _) in checkpoint().items():
        module.register_parameter(name, nn.Parameter(distribute_tensor(torch.full_like(tensor, torch.nan), mesh["tensor"], [Shard(dim)])))
    if spread > 1:
        fully_shard(module, mesh=mesh["shard"])
    return list(module.named_parameters()), {
        name: Fused(dim, parts, mesh["tensor"].size()) for name, (_, dim, parts) in checkpoint().items()
    }


class Known:
    def fill(self, name, index):
        return checkpoint()[name][0][index]


def filled_written_and_read(spread, folder):
    from trainer.checkpoint.shards import write_shards
    from trainer.parallel.parallelize import fill
    from trainer.state.storage import plan_shares, read_state

    named, fused = split(spread)
    fill(named, Known(), fused)
    values = {name: checkpoint()[name][0] for name, _ in named}
    same = [torch.equal(fused[name].whole(parameter.detach()), values[name]) for name, parameter in named]
    held = {name: local_part(parameter.detach()).clone() for name, parameter in named}
    state = {name: fused[name].neutral(parameter.detach()) for name, parameter in named}
    write_shards(folder, plan_shares(state).of(state))
    dist.barrier()
    for _, parameter in named:
        local_part(parameter.detach()).fill_(torch.nan)
    read_state(folder, state)
    same += [torch.equal(local_part(parameter.detach()), held[name]) for name, parameter in named]
    plain = {name: torch.empty_like(value) for name, value in values.items()}
    read_state(folder, plain)
    same += [torch.equal(plain[name], value) for name, value in values.items()]
    return same, [num_copies(value, 4) for value in state.values()], {name: value.tolist() for name, value in held.items()}


@pytest.mark.parametrize(("ranks", "spread"), [(2, 1), *(pytest.param(*cell, marks=pytest.mark.slow) for cell in ((4, 1), (4, 2), (4, 4)))])
def test_what_is_filled_written_and_read_is_the_checkpoints(tmp_path, ranks, spread):
    found = run_ranks(filled_written_and_read, ranks, spread, tmp_path)
    assert all(all(same) for same, _, _ in found)
    assert all(set(copies) == {4 // ranks} for _, copies, _ in found)
    width = checkpoint()["bias3"][0].numel() // 3
    if (ranks, spread) == (2, 1):  # each rank has half of every part
        for rank, (_, _, held) in enumerate(found):
            start, stop = rank * width // 2, (rank + 1) * width // 2
            assert held["bias3"] == [float(part * width + place) for part in range(3) for place in range(start, stop)]
