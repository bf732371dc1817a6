"""Packing against a slow, obvious implementation."""

import random

import numpy as np
import pytest

from trainer.data.rows import PackedRows
from trainer.objective.causal_lm import IGNORE, CausalLM

FILL = 999


def random_stream(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Documents of very different lengths, tokens all distinct, so that a misplaced one shows."""
    lengths = [rng.choice([1, 1, 2, 3, rng.randint(1, 60)]) for _ in range(rng.randint(1, 30))]
    starts = np.cumsum([0, *lengths[:-1]])
    return np.arange(1000, 1000 + sum(lengths), dtype=np.uint16), starts.astype(np.int64)


def slow_row(tokens: np.ndarray, starts: np.ndarray, length: int, row: int) -> dict[str, list]:
    made = {"tokens": [], "positions": [], "starts": []}
    position = -1
    for place in range(row * length, row * length + length + 1):
        begins = place in starts.tolist() and place < tokens.size
        position = 0 if begins or place == row * length else position + 1
        made["tokens"].append(int(tokens[place]) if place < tokens.size else FILL)
        made["positions"].append(position)
        made["starts"].append(begins)
    return made


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_those_of_the_slow_implementation(seed):
    rng = random.Random(seed)
    tokens, starts = random_stream(rng)
    length = rng.randint(2, 20)
    rows = PackedRows(tokens, starts, length, FILL)
    assert len(rows) == len(range(0, tokens.size - 1, length))
    if not len(rows):
        return
    ids = np.array([rng.randrange(-1, len(rows)) for _ in range(rng.randint(1, 9))], np.int64)
    taken = rows.take(ids)
    for place, sample in enumerate(ids.tolist()):
        row = max(sample, 0)
        expected = slow_row(tokens, starts, length, row)
        assert taken.tokens[place].tolist() == expected["tokens"]
        assert taken.positions[place].tolist() == expected["positions"]
        assert taken.starts[place].tolist() == expected["starts"]
        assert taken.filled[place] == min(length + 1, tokens.size - row * length)
    assert np.array_equal(taken.sample_ids, ids)
    assert taken.tokens.dtype == taken.positions.dtype == taken.filled.dtype == np.int64


@pytest.mark.parametrize("seed", range(20))
def test_an_epoch_has_every_token_as_target_once_except_document_starts(seed):
    tokens, starts = random_stream(random.Random(seed))
    rows = PackedRows(tokens, starts, 7, FILL)
    if not len(rows):
        return
    batch = CausalLM().collate(rows.take(np.arange(len(rows))))
    targets = batch.labels[batch.labels != IGNORE].tolist()
    assert targets == np.delete(tokens, starts).tolist()
    assert batch.counts == {"targets": len(targets)}


def test_a_filler_is_a_copy_without_targets():
    rows = PackedRows(np.arange(50, dtype=np.uint16), np.array([0, 20]), 8, FILL)
    batch = CausalLM().collate(rows.take(np.array([0, -1])))
    assert batch.inputs["input_ids"][0].tolist() == batch.inputs["input_ids"][1].tolist()
    assert (batch.labels[1] == IGNORE).all()
    assert batch.counts["targets"] == 8


@pytest.mark.parametrize("size", [0, 1])
def test_a_stream_without_a_target_has_no_rows(size):
    assert len(PackedRows(np.arange(size, dtype=np.uint16), np.arange(size), 4, FILL)) == 0
