"""The numbers that belong to a sample: fixed for good, by the seed, the epoch and the sample's id alone."""

import hashlib
import itertools

import numpy as np
import pytest

from trainer.objective.noise import uniform

GOLDEN = {
    (0, 0, 0): [
        "0x1.fe11d2eb13a60p-5",
        "0x1.abc95da06aff9p-1",
        "0x1.3078726a9efbep-2",
        "0x1.1b501d6f11a52p-1",
        "0x1.18f2c7b8f97dbp-1",
        "0x1.9b6e9674c10d4p-1",
    ],
    (7, 2, 12345): [
        "0x1.10fb98018ba96p-1",
        "0x1.03d3ae3affb57p-1",
        "0x1.90293b54df341p-1",
        "0x1.f4faeeba45077p-1",
        "0x1.c850d22f57b16p-2",
        "0x1.c95ac819ee6e0p-1",
    ],
    (1234567890123, 41, -1): [
        "0x1.d9a84e14811b2p-2",
        "0x1.11e9126200aedp-1",
        "0x1.186a00013b598p-2",
        "0x1.195050c5a1190p-2",
        "0x1.8413d2b9a4590p-3",
        "0x1.81ea60b1c89b8p-1",
    ],
}
WORD = 2**64


def philox(key, blocks):
    """Philox 4x64 with 10 rounds in whole numbers, from the constants of its paper; the counter of the first block is 1."""
    for counter in range(1, blocks + 1):
        words, low, high = [counter, 0, 0, 0], key % WORD, key // WORD
        for _ in range(10):
            first, third = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
            words = [third // WORD ^ words[1] ^ low, third % WORD, first // WORD ^ words[3] ^ high, first % WORD]
            low, high = (low + 0x9E3779B97F4A7C15) % WORD, (high + 0xBB67AE8584CAA73B) % WORD
        yield from words


@pytest.mark.parametrize("place", GOLDEN, ids=str)
def test_no_library_can_change_them(place):
    assert [number.hex() for number in uniform(*place, 6).tolist()] == GOLDEN[place]


@pytest.mark.parametrize("place", GOLDEN, ids=str)
def test_they_are_what_the_docstring_says(place):
    digest = hashlib.sha256("isotrain noise {} {} {}".format(*place).encode("ascii")).digest()
    raw = philox(int.from_bytes(digest[:16], "little"), 5)
    assert uniform(*place, 20).tolist() == [(word >> 11) / 2**53 for word in raw]


def test_asking_for_more_changes_nothing_that_was_there():
    assert np.array_equal(uniform(1, 2, 3, 1000)[:17], uniform(1, 2, 3, 17))


def test_every_place_has_its_own():
    places = list(itertools.product((0, 1, 12), (0, 1, 2), (-1, 0, 1, 23)))
    first = {uniform(*place, 1)[0] for place in places}
    assert len(first) == len(places), "12, 3 is not 1, 23"


def test_the_global_generator_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    uniform(1, 2, 3, 100)
    assert np.array_equal(np.random.get_state()[1], before)


def test_they_are_uniform_and_independent():
    numbers = np.stack([uniform(0, 0, sample, 256) for sample in range(1000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    cells = np.bincount((numbers * 64).astype(int).ravel(), minlength=64)
    expected = numbers.size / 64
    # Chi-square with 63 degrees of freedom: mean 63, deviation sqrt(126).
    assert ((cells - expected) ** 2 / expected).sum() < 63 + 5 * 126**0.5
    for a, b in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):  # neighbours in a sample, and neighbouring samples
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5
