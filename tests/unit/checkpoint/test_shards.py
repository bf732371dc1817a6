"""Tensors in files, and the memory from which they are written."""

import hashlib
import os

import pytest
import torch
from safetensors import safe_open

from trainer.checkpoint import writing
from trainer.checkpoint.shards import _contents, write_shards
from trainer.checkpoint.staging import Staging
from trainer.state.storage import Part, plan_shares, read_tensors

NAME = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def state():
    """Of every kind: a matrix, a view that is not contiguous, a scalar, nothing, and odd numbers of smaller elements."""
    torch.manual_seed(0)
    return {
        "model.z": torch.randn(5, 3),
        "model.view": torch.randn(4, 6)[:, 1:4],
        "optim.step": torch.tensor(7.0),
        "model.none": torch.zeros(0, 3),
        "model.half": torch.randn(3).bfloat16(),
        "model.a": torch.randn(7),
        "model.wide": torch.randn(3, dtype=torch.float64),
    }


def test_what_is_written_is_read_by_safetensors_and_by_torch(tmp_path, state):
    entry = write_shards(tmp_path, plan_shares(state).of(state))[NAME]
    content = (tmp_path / NAME).read_bytes()
    assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with safe_open(tmp_path / NAME, framework="pt") as stored:
        assert {name: stored.get_tensor(name).dtype for name in stored.keys()} == {name: held.dtype for name, held in state.items()}  # noqa: SIM118
        assert all(torch.equal(stored.get_tensor(name), held) for name, held in state.items())
    read = read_tensors(tmp_path, "model.")
    assert all(torch.equal(read[name], state[f"model.{name}"]) for name in ("z", "view", "none", "half", "a", "wide"))


def test_a_hash_that_is_far_behind_is_waited_for(tmp_path, state, monkeypatch):
    monkeypatch.setattr(writing, "_MOST_UNHASHED", 0)
    entry = write_shards(tmp_path, plan_shares(state).of(state))[NAME]
    assert entry["sha256"] == hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()


def test_no_file_is_written_over(tmp_path, state):
    (tmp_path / NAME).write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_shards(tmp_path, plan_shares(state).of(state))


def test_a_staged_copy_stays_when_the_live_tensors_change_and_takes_no_more_memory_the_next_time(tmp_path, state):
    shares = plan_shares(state)
    staging = Staging(shares.of(state))
    size = staging.nbytes
    for _ in range(2):
        before = {name: held.clone() for name, held in state.items()}
        staged = staging.fill(shares.of(state))
        for held in state.values():
            held.add_(1)
        (parts,) = staged.values()
        assert {part.name for part in parts} == set(state)
        assert all(torch.equal(part.tensor, before[part.name]) for part in parts)
    assert staging.nbytes == size >= sum(held.nbytes for held in state.values())


def test_a_process_forked_in_between_makes_no_save_copy_its_pages(state):
    live = plan_shares(state).of(state)
    staging = Staging(live)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0 if staging._memory.any() else 1)
    staging.fill(live)
    os.write(writer, b".")
    assert os.waitpid(child, 0)[1] == 0, "they are the same pages: the child sees what was saved after it was born"


def test_live_and_staged_parts_make_the_same_file(tmp_path, state):
    live = plan_shares(state).of(state)
    for folder in ("live", "staged"):
        (tmp_path / folder).mkdir()
    entries = [write_shards(tmp_path / "live", live), write_shards(tmp_path / "staged", Staging(live).fill(live))]
    assert entries[0] == entries[1]
    assert (tmp_path / "live" / NAME).read_bytes() == (tmp_path / "staged" / NAME).read_bytes()


def test_staged_copies_are_written_in_one_piece(state):
    live = plan_shares(state).of(state)
    staged = Staging(live).fill(live)
    assert [content.nbytes for content in _contents(staged[NAME]) if content.nbytes] == [sum(held.nbytes for held in state.values())]


def test_a_part_says_where_it_lies_in_the_whole(tmp_path):
    for rank, rows in enumerate((slice(0, 2), slice(2, 5))):
        whole = torch.arange(15.0).view(5, 3)
        write_shards(tmp_path, {f"shard-{rank + 1}.safetensors": [Part("model.z", (rows.start, 0), whole[rows])]})
    assert torch.equal(read_tensors(tmp_path, "model.")["z"], whole)
