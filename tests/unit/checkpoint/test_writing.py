"""Writing beside training that leaves no core: for a share of the time, until somebody waits."""

import threading

import pytest
import torch

from trainer.checkpoint import writing
from trainer.checkpoint.shards import write_shards
from trainer.checkpoint.writing import InPieces, writer_beside
from trainer.state.storage import Part


@pytest.fixture
def files():
    torch.manual_seed(0)
    return {"shard.safetensors": [Part("model.a", (0, 0), torch.randn(300, 7)), Part("model.b", (0,), torch.randn(11))]}


def test_pieces_make_the_same_file(tmp_path, files, monkeypatch):
    monkeypatch.setattr(writing, "_PIECE", 1000)
    for folder in ("at once", "in pieces"):
        (tmp_path / folder).mkdir()
    entries = [write_shards(tmp_path / "at once", files), write_shards(tmp_path / "in pieces", files, InPieces(0.5))]
    assert entries[0] == entries[1]
    assert len({(tmp_path / folder / "shard.safetensors").read_bytes() for folder in ("at once", "in pieces")}) == 1


def test_every_piece_is_followed_by_a_rest_of_its_length(tmp_path, files, monkeypatch):
    clock, rests = iter(range(1000)), []
    monkeypatch.setattr(writing, "_PIECE", 1000)
    monkeypatch.setattr(writing.time, "thread_time", lambda: float(next(clock)))  # each piece takes a second
    keeping = InPieces(0.2)
    monkeypatch.setattr(keeping._hurried, "wait", rests.append)
    write_shards(tmp_path, files, keeping)
    assert len(rests) >= 9 and rests == [pytest.approx(4.0)] * len(rests)


def test_who_is_waited_for_hurries_and_the_next_does_not():
    keeping = InPieces(1e-6)
    resting = threading.Thread(target=keeping.rest, args=(1.0,))  # eleven days
    resting.start()
    keeping.hurry()
    resting.join(timeout=60)
    assert not resting.is_alive()
    keeping.rest(1.0)
    keeping.begin()
    assert not keeping._hurried.is_set()


@pytest.mark.parametrize(
    ("cores", "ranks", "on_gpu", "threads", "rests"),
    [(2, 1, False, 1, False), (2, 2, False, 1, True), (2, 1, False, 2, True), (16, 8, True, 16, False), (8, 8, True, 1, True)],
)
def test_it_rests_where_training_leaves_no_core(monkeypatch, cores, ranks, on_gpu, threads, rests):
    monkeypatch.setattr(writing, "_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert isinstance(writer_beside(ranks, on_gpu), InPieces) == rests
