"""Rows against slow, obvious implementations."""

import hashlib
import random

import numpy as np
import pytest

from trainer.data.rows import PackedRows, PaddedRows
from trainer.types import Rows, Window

FILL, EOS = 999, 998


def random_stream(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Documents of very different lengths, tokens all distinct, so that a misplaced one shows."""
    lengths = [rng.choice([1, 1, 2, 3, rng.randint(1, 60)]) for _ in range(rng.randint(1, 30))]
    starts = np.cumsum([0, *lengths[:-1]])
    return np.arange(1000, 1000 + sum(lengths), dtype=np.uint16), starts.astype(np.int64)


def slow_row(tokens: np.ndarray, starts: np.ndarray, window: Window, row: int) -> dict[str, list]:
    made = {"tokens": [], "positions": [], "starts": []}
    position, begin = -1, row * window.stride
    for place in range(begin, begin + window.width):
        begins = place in starts.tolist() and place < tokens.size
        position = 0 if begins or place == begin else position + 1
        made["tokens"].append(int(tokens[place]) if place < tokens.size else FILL)
        made["positions"].append(position)
        made["starts"].append(begins)
    return made


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("seed", range(60))
def test_packed_rows_are_those_of_the_slow_implementation(seed, ahead):
    rng = random.Random(seed)
    tokens, starts = random_stream(rng)
    length = rng.randint(4, 20)
    window = Window(length, length + ahead)
    rows = PackedRows(tokens, starts, window, FILL)
    assert len(rows) == len(range(0, tokens.size - ahead, length))
    if not len(rows):
        return
    ids = np.array([rng.randrange(-1, len(rows)) for _ in range(rng.randint(1, 9))], np.int64)
    taken = rows.take(ids)
    for place, sample in enumerate(ids.tolist()):
        row = max(sample, 0)
        expected = slow_row(tokens, starts, window, row)
        assert taken.tokens[place].tolist() == expected["tokens"]
        assert taken.positions[place].tolist() == expected["positions"]
        assert taken.starts[place].tolist() == expected["starts"]
        assert taken.filled[place] == min(window.width, tokens.size - row * length)
    assert taken.tokens.dtype == taken.positions.dtype == taken.filled.dtype == np.int64
    assert rows.width(ids) == window.width
    assert rows.lengths.tolist() == [window.width] * len(rows)


@pytest.mark.parametrize("seed", range(20))
def test_without_look_ahead_every_token_is_in_one_row(seed):
    tokens, starts = random_stream(random.Random(seed))
    rows = PackedRows(tokens, starts, Window(7, 7), FILL)
    taken = rows.take(np.arange(len(rows)))
    assert taken.tokens[taken.real].tolist() == tokens.tolist()
    assert taken.starts[taken.real].nonzero()[0].tolist() == starts.tolist()
    assert (taken.filled[:-1] == 7).all()


@pytest.mark.parametrize("seed", range(20))
def test_with_one_token_ahead_every_token_but_a_documents_first_is_a_target_once(seed):
    tokens, starts = random_stream(random.Random(seed))
    rows = PackedRows(tokens, starts, Window(7, 8), FILL)
    if not len(rows):
        return
    taken = rows.take(np.arange(len(rows)))
    targets = taken.tokens[:, 1:][taken.real[:, 1:] & ~taken.starts[:, 1:]]
    assert targets.tolist() == np.delete(tokens, starts).tolist()


@pytest.mark.parametrize(("length", "number", "expected"), [(32, 558, "7f03318caaf70fb3"), (128, 140, "edbe12665abab59c")])
def test_the_rows_of_next_token_prediction_never_change(length, number, expected):
    """Hashes made when rows had no stride yet: a run begun then goes on with the same samples."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 90, 400)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    tokens = rng.integers(0, 5000, int(lengths.sum())).astype(np.uint16)
    rows = PackedRows(tokens, starts, Window(length, length + 1), 2)
    assert len(rows) == number
    taken = rows.take(np.arange(number))
    found = hashlib.sha256()
    for array in (taken.tokens, taken.positions, taken.starts.astype(np.uint8), taken.filled):
        found.update(np.ascontiguousarray(array).tobytes())
    assert found.hexdigest()[:16] == expected


def test_a_packed_filler_is_a_copy_of_the_first_row():
    rows = PackedRows(np.arange(50, dtype=np.uint16), np.array([0, 20]), Window(8, 9), FILL)
    assert_same(rows.take(np.array([-1])), rows.take(np.array([0])))


@pytest.mark.parametrize("size", [0, 1])
def test_a_stream_without_a_target_has_no_rows(size):
    assert len(PackedRows(np.arange(size, dtype=np.uint16), np.arange(size), Window(4, 5), FILL)) == 0
    assert len(PackedRows(np.arange(size, dtype=np.uint16), np.arange(size), Window(4, 4), FILL)) == size


def assert_same(left: Rows, right: Rows) -> None:
    for name in ("tokens", "positions", "starts", "filled"):
        assert np.array_equal(getattr(left, name), getattr(right, name))


@pytest.mark.parametrize("eos", [EOS, None])
@pytest.mark.parametrize("seed", range(30))
def test_padded_rows_are_those_of_the_slow_implementation(seed, eos):
    rng = random.Random(seed)
    tokens, starts = random_stream(rng)
    documents = [document.tolist() for document in np.split(tokens, starts[1:])]
    rows = PaddedRows(tokens, starts, Window(40, 40), FILL, eos)
    assert len(rows) == len(documents)
    assert rows.lengths.tolist() == [len(document) for document in documents]
    ids = np.array([rng.randrange(-1, len(rows)) for _ in range(rng.randint(1, 9))], np.int64)
    width = rng.choice([None, 40, 8])
    taken = rows.take(ids, width)
    made = taken.tokens.shape[1]
    longest = max(len(documents[max(sample, 0)]) for sample in ids.tolist())
    assert made == width or made == min(-(-longest // 8) * 8, 40)
    for place, sample in enumerate(ids.tolist()):
        document = documents[max(sample, 0)]
        kept = document[:made]
        if len(document) > made and eos is not None:
            kept[-1] = eos
        assert taken.filled[place] == len(kept)
        assert taken.tokens[place].tolist() == kept + [FILL] * (made - len(kept))
        assert taken.real[place].sum() == len(kept)
    assert (taken.positions == np.arange(made)).all()
    assert (taken.starts == (np.arange(made) == 0)).all()
    assert taken.tokens.dtype == taken.positions.dtype == taken.filled.dtype == np.int64


@pytest.mark.parametrize(("longest", "expected"), [(1, 9), (8, 9), (9, 9), (10, 17), (33, 33), (60, 33)])
def test_the_slots_of_a_padded_row_are_a_multiple_of_eight_beside_the_look_ahead(longest, expected):
    rows = PaddedRows(np.arange(longest + 1), np.array([0, 1]), Window(32, 33), FILL, EOS)
    assert rows.width(np.array([0, 1])) == expected
    assert rows.take(np.array([0, 1])).tokens.shape == (2, expected)


def test_a_document_that_just_fits_is_whole():
    tokens = np.arange(1000, 1033)
    taken = PaddedRows(tokens, np.array([0]), Window(32, 33), FILL, EOS).take(np.array([0]))
    assert taken.tokens[0].tolist() == tokens.tolist()
