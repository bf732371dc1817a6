"""Flat ranges of tensors as boxes, and as torch's checkpoint writes and reads them."""

import itertools
import math
import random

import pytest
import torch

from trainer.checkpoint.shards import write_shards
from trainer.distributed.pieces import Pieces, boxes
from trainer.distributed.sharding import local_part, num_copies
from trainer.state.storage import plan_shares, read_state, read_tensors
from trainer.testing import run_ranks

SHAPES = [(), (7,), (3, 5), (1, 9), (4, 3, 2), (2, 2, 2, 2), (128, 33)]


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_boxes_hold_each_element_of_a_range_once_and_in_order(shape):
    whole = torch.arange(math.prod(shape)).reshape(shape)
    for start, stop in itertools.combinations(range(whole.numel() + 1), 2):
        found = list(boxes(shape, start, stop))
        parts = [whole[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].flatten() for box in found]
        assert torch.cat(parts).tolist() == list(range(start, stop))
        assert len(found) <= max(2 * len(shape) - 1, 1)


def test_nothing_is_no_box():
    assert list(boxes((3, 5), 4, 4)) == []
    assert Pieces((3, 5), torch.empty(0), 0).boxes == []


def test_it_is_live_and_cannot_be_computed_with():
    flat = torch.zeros(20)
    piece = Pieces((4, 5), flat.narrow(0, 3, 9), 7)
    assert piece.shape == (4, 5) and local_part(piece).numel() == 9 and num_copies(piece, 4) == 1
    for offsets, part in piece.boxes:
        part.fill_(offsets[0] + 1)
    assert flat.tolist() == [0] * 3 + [2] * 3 + [3] * 5 + [4] + [0] * 8
    with pytest.raises(NotImplementedError, match="holds only a part"):
        piece + 1


def whole():
    return {f"t{number}": torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number, shape in enumerate(SHAPES)}


def cut(rank, ranks, seed, fill):
    """This rank's range of each tensor, cut anywhere."""
    rng = random.Random(seed)
    state = {}
    for name, tensor in whole().items():
        edges = sorted([0, tensor.numel(), *(rng.randint(0, tensor.numel()) for _ in range(ranks - 1))])
        start, stop = edges[rank : rank + 2]
        held = tensor.flatten()[start:stop].clone() if fill else torch.full((stop - start,), float("nan"))
        state[name] = Pieces(tensor.shape, held, start)
    return state


def write_and_read(folder):
    import os

    import torch.distributed as dist

    from trainer.distributed.launch import read_launch
    from trainer.distributed.process_group import start_process_group

    launch = read_launch(os.environ)
    start_process_group(launch, torch.device("cpu"), 60)
    state = cut(launch.rank, launch.world_size, 1, fill=True)
    write_shards(folder, plan_shares(state).of(state))
    dist.barrier()
    other = cut(launch.rank, launch.world_size, 2, fill=False)
    read_state(folder, other)
    plain = {name: torch.full_like(tensor, float("nan")) for name, tensor in whole().items()}
    read_state(folder, plain)
    same = [torch.equal(plain[name], tensor) for name, tensor in whole().items()]
    return same + [torch.equal(piece.held, whole()[name].flatten()[piece.start :][: len(piece.held)]) for name, piece in other.items()]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_is_written_in_ranges_is_read_in_others_and_whole(tmp_path, ranks):
    for same in run_ranks(write_and_read, ranks, tmp_path):
        assert all(same)
    stored = read_tensors(tmp_path, "")
    assert all(torch.equal(stored[name], tensor) for name, tensor in whole().items())
