"""The contract Order: the stream of samples is a function of (seed, step) and of nothing else."""

import hashlib
import itertools
import struct
import time

import numpy as np
import pytest

from trainer.data.grouping import LengthGrouped
from trainer.data.mixing import MixOrder
from trainer.data.order import SampleOrder, samples_hash, step_draws
from trainer.protocols import Order

BATCH = 10
WINDOW = 8
SIZES = {
    "plain": [700],
    "mix": [500, 130],
    "scheduled mix": [90, 300, 41, 7],
    "grouped": [700],
    "grouped mix": [500, 130],
    "grouped scheduled mix": [90, 300, 41, 7],
}
"""The implementations of Order, and how many samples each of its sources has."""

implementations = pytest.mark.parametrize("name", SIZES)


def make(name: str, length: int = 4800) -> Order:
    """A fresh one, which remembers nothing; a scheduled one ends its schedule after ``length`` positions."""
    parts = [SampleOrder(size, seed) for seed, size in enumerate(SIZES[name])]
    order: Order = parts[0]
    if name.endswith("scheduled mix"):
        order = MixOrder(parts, [0.6, 0.2, 0.2, 0], [0.1, 0.1, 0.3, 0.5], length)
    elif name.endswith("mix"):
        order = MixOrder(parts, [51, 49], [51, 49], length)
    if name.startswith("grouped"):
        lengths = np.random.default_rng(0).integers(1, 30, order.num_samples)
        order = LengthGrouped(order, lengths, BATCH, seed=4, window=WINDOW)
    return order


def pairs(draws) -> list[tuple[int, int]]:
    return list(zip(draws.ids.reshape(-1).tolist(), draws.epochs.reshape(-1).tolist(), strict=True))


def chi_square_limit(degrees: int, sigmas: float = 5.0) -> float:
    """The value a chi-square statistic exceeds with the probability of ``sigmas`` standard deviations (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + sigmas * (2 / (9 * degrees)) ** 0.5) ** 3


def chi_square(counts: np.ndarray, shares: np.ndarray | float = 1.0) -> float:
    """Of observed counts against ``shares``, which need not add up to 1."""
    expected = np.broadcast_to(shares, counts.shape) * counts.sum() / np.broadcast_to(shares, counts.shape).sum()
    return float(((counts - expected) ** 2 / expected).sum())


def epochs(num_samples: int, seed: int, count: int, first: int = 0) -> np.ndarray:
    """(count, N): one epoch per row."""
    return step_draws(SampleOrder(num_samples, seed), first + 1, count, num_samples).ids


def batch(order: Order, step: int, global_batch: int) -> np.ndarray:
    return step_draws(order, step, 1, global_batch).ids[0]


@pytest.mark.parametrize("num_samples", [*range(1, 40), 255, 256, 257, 1000, 65_537])
def test_each_epoch_is_a_permutation(num_samples):
    for epoch in epochs(num_samples, seed=num_samples, count=3):
        assert np.array_equal(np.sort(epoch), np.arange(num_samples))


@pytest.mark.parametrize(("num_samples", "global_batch"), [(10, 4), (7, 16), (1, 5), (64, 64), (3, 100)])
def test_batches_cut_the_stream_without_padding_or_dropping(num_samples, global_batch):
    order = SampleOrder(num_samples, 3)
    steps = 40
    stream = np.concatenate([batch(order, step, global_batch) for step in range(1, steps + 1)])
    whole_epochs = -(-stream.size // num_samples)
    assert np.array_equal(stream, epochs(num_samples, 3, whole_epochs).reshape(-1)[: stream.size])
    some = step_draws(order, 5, 7, global_batch)
    assert np.array_equal(some.ids, stream.reshape(steps, global_batch)[4:11])
    assert np.array_equal(some.epochs.reshape(-1), np.arange(4 * global_batch, 11 * global_batch) // num_samples)


@implementations
def test_each_epoch_of_each_source_holds_each_sample_once(name):
    draws = make(name).at(np.arange(4800))
    assert draws.ids.dtype == draws.epochs.dtype == np.int64
    ends = np.cumsum(SIZES[name])
    sources = np.searchsorted(ends, draws.ids, side="right")
    assert set(sources.tolist()) == set(range(ends.size))
    for source, end in enumerate(ends):
        ids, epochs = draws.ids[sources == source], draws.epochs[sources == source]
        assert epochs.min() == 0
        last = epochs.max()
        assert last >= 2, "so that there are whole epochs to look at"
        for epoch in range(last + 1):
            seen = np.sort(ids[epochs == epoch])
            assert np.array_equal(seen, np.unique(seen))
            if epoch < last:
                assert np.array_equal(seen, np.arange(end - SIZES[name][source], end))


@implementations
@pytest.mark.parametrize("global_batch", [1, BATCH, 16, 333])
def test_seeking_a_step_gives_what_walking_to_it_gives(name, global_batch):
    walked = make(name)
    steps = [pairs(step_draws(walked, step, 1, global_batch)) for step in range(1, 31)]
    for step in (30, 1, 17, 2, 16):
        assert pairs(step_draws(make(name), step, 1, global_batch)) == steps[step - 1]
        assert pairs(step_draws(walked, step, 1, global_batch)) == steps[step - 1], "it depends on what was read before"
    assert pairs(step_draws(make(name), 11, 20, global_batch)) == list(itertools.chain(*steps[10:]))


@implementations
@pytest.mark.parametrize("begin", [0, 4500, 10**9 + 7])
def test_a_part_of_the_stream_does_not_depend_on_what_else_is_asked_for(name, begin):
    whole = pairs(make(name).at(np.arange(begin, begin + 1000)))
    for cut in (1, 79, 80, 500, 999):
        assert pairs(make(name).at(np.arange(begin, begin + cut))) == whole[:cut]
        assert pairs(make(name).at(np.arange(begin + cut, begin + 1000))) == whole[cut:]
    some = np.flatnonzero(np.random.default_rng(1).random(1000) < 0.1)
    assert pairs(make(name).at(begin + some)) == [whole[place] for place in some]
    assert pairs(make(name).at(np.arange(0))) == []


def test_a_mix_of_51_and_49_keeps_its_shares_in_every_window_and_across_a_resume():
    """Aligned or not, any 1,000 positions hold 505 to 515 of the first source; of two sources, even 509 to 511."""
    before = step_draws(make("mix"), 1, 300, 16).ids.reshape(-1)
    resumed = step_draws(make("mix"), 301, 700, 16).ids.reshape(-1)
    ids = np.concatenate([before, resumed])
    assert np.array_equal(ids, make("mix").at(np.arange(16_000)).ids)
    drawn = np.concatenate([[0], np.cumsum(ids < SIZES["mix"][0])])
    windows = drawn[1000:] - drawn[:-1000]
    assert windows.size == 15_001
    assert windows.min() >= 509
    assert windows.max() <= 511


def test_the_stream_is_the_specification():
    """A second implementation, in plain integers, straight from the docstring."""
    num_samples, seed, mask = 1000, 11, 2**64 - 1

    def f(x: int, key: int, size: int) -> int:
        h = (x + key) * 0x9E3779B97F4A7C15 & mask
        h = (h ^ h >> 32) * 0xD6E8FEB86659FD93 & mask
        return (h >> 32) * size >> 32

    def sample(position: int) -> int:
        epoch, i = divmod(position, num_samples)
        keys = struct.unpack("<16Q", hashlib.shake_256(f"isotrain order {seed} {epoch}".encode()).digest(128))
        a, b = 32, 32
        while True:
            left, right = divmod(i, b)
            for r, key in enumerate(keys):
                if r % 2 == 0:
                    left = (left + f(right, key, a)) % a
                else:
                    right = (right + f(left, key, b)) % b
            i = left * b + right
            if i < num_samples:
                return i

    expected = [sample(position) for position in range(1990, 2090)]
    assert step_draws(SampleOrder(num_samples, seed), 200, 10, 10).ids.reshape(-1).tolist() == expected


def test_known_values_never_change():
    """A stored run resumes in the same order for ever; see docs/decisions/0002-sample-order.md before editing these numbers."""
    assert batch(SampleOrder(10, 0), 1, 12).tolist() == [8, 9, 4, 1, 2, 3, 6, 0, 7, 5, 5, 3]
    assert batch(SampleOrder(1_000_003, 7), 1_000_000, 4).tolist() == [518900, 240117, 253023, 545309]
    assert samples_hash(batch(SampleOrder(1_000_003, 7), 1_000_000, 4)) == "8ca74785c73e20bf"
    assert batch(make("mix"), 1_000_000, 8).tolist() == [507, 173, 556, 92, 541, 361, 619, 154]
    assert batch(make("scheduled mix"), 100, 8).tolist() == [1, 40, 398, 174, 37, 15, 418, 44]
    assert batch(make("grouped mix"), 1_000_000, 8).tolist() == [602, 138, 558, 336, 307, 457, 22, 571]


def test_hash_is_of_little_endian_int64():
    ids = np.array([1, -1, 2**40], np.int64)
    assert samples_hash(ids) == hashlib.sha256(struct.pack("<3q", 1, -1, 2**40)).hexdigest()[:16]
    assert samples_hash(ids.astype(">i8")) == samples_hash(ids)


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5])
def test_tiny_corpora_see_every_permutation_equally_often(num_samples):
    permutations = dict.fromkeys(itertools.permutations(range(num_samples)), 0)
    for seed in range(10):
        for epoch in epochs(num_samples, seed, count=20 * len(permutations)).tolist():
            permutations[tuple(epoch)] += 1
    assert chi_square(np.array(list(permutations.values()))) < chi_square_limit(len(permutations) - 1)


@pytest.mark.parametrize("num_samples", [5, 7, 30])
def test_positions_are_uniform_over_seeds(num_samples):
    first_epochs = np.concatenate([epochs(num_samples, seed, 1) for seed in range(100 * num_samples)])
    for place in range(num_samples):
        counts = np.bincount(first_epochs[:, place], minlength=num_samples)
        assert chi_square(counts) < chi_square_limit(num_samples - 1)


@pytest.mark.parametrize("num_samples", [30, 1000, 16_384])
def test_positions_are_uniform_over_epochs_and_neighbours_are_independent(num_samples):
    some = epochs(num_samples, seed=5, count=max(10, 60_000 // num_samples))
    bins = np.arange(num_samples) * 10 // num_samples
    early = some[:, : num_samples // 2]
    assert chi_square(np.bincount(bins[early.reshape(-1)], minlength=10), np.bincount(bins)) < chi_square_limit(9)
    jumps = np.diff(some, axis=1) % num_samples
    assert chi_square(np.bincount(bins[jumps.reshape(-1)], minlength=10), np.bincount(bins[1:])) < chi_square_limit(9)


@pytest.mark.parametrize("num_samples", [100, 4096])
def test_epochs_and_seeds_are_unrelated(num_samples):
    """Two random permutations agree in one place on average."""
    some = epochs(num_samples, seed=1, count=400)
    others = np.stack([epochs(num_samples, seed, 1)[0] for seed in range(2, 402)])
    for agreements in ((some[1:] == some[:-1]).sum(axis=1), (some == others).sum(axis=1)):
        assert abs(agreements.mean() - 1) < 5 * (1 / agreements.size) ** 0.5


def test_any_step_is_found_at_once():
    large = [SampleOrder(50_000_000, 0), SampleOrder(1_000_000, 1)]
    mix = MixOrder(large, [0.7, 0.3], [0.2, 0.8], 10**9)
    for order in (large[0], mix, LengthGrouped(large[1], np.arange(1_000_000), 512, 0)):
        start = time.perf_counter()
        step_draws(order, 1_000_000, 1, 512)
        assert time.perf_counter() - start < 0.1
