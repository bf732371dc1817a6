"""The contract Order: the stream of samples is a function of (seed, step) and of nothing else."""

import hashlib
import itertools
import struct
import time

import numpy as np
import pytest

from trainer.data.order import SampleOrder, samples_hash


def chi_square_limit(degrees: int, sigmas: float = 5.0) -> float:
    """The value a chi-square statistic exceeds with the probability of ``sigmas`` standard deviations (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + sigmas * (2 / (9 * degrees)) ** 0.5) ** 3


def chi_square(counts: np.ndarray, shares: np.ndarray | float = 1.0) -> float:
    """Of observed counts against ``shares``, which need not add up to 1."""
    expected = np.broadcast_to(shares, counts.shape) * counts.sum() / np.broadcast_to(shares, counts.shape).sum()
    return float(((counts - expected) ** 2 / expected).sum())


def epochs(num_samples: int, seed: int, count: int, first: int = 0) -> np.ndarray:
    """(count, N): one epoch per row."""
    return SampleOrder(num_samples, seed).batches(first + 1, count, num_samples)


@pytest.mark.parametrize("num_samples", [*range(1, 40), 255, 256, 257, 1000, 65_537])
def test_each_epoch_is_a_permutation(num_samples):
    for epoch in epochs(num_samples, seed=num_samples, count=3):
        assert np.array_equal(np.sort(epoch), np.arange(num_samples))


@pytest.mark.parametrize(("num_samples", "global_batch"), [(10, 4), (7, 16), (1, 5), (64, 64), (3, 100)])
def test_batches_cut_the_stream_without_padding_or_dropping(num_samples, global_batch):
    order = SampleOrder(num_samples, 3)
    steps = 40
    stream = np.concatenate([order.batch(step, global_batch) for step in range(1, steps + 1)])
    whole_epochs = -(-stream.size // num_samples)
    assert np.array_equal(stream, epochs(num_samples, 3, whole_epochs).reshape(-1)[: stream.size])
    assert np.array_equal(order.batches(5, 7, global_batch), stream.reshape(steps, global_batch)[4:11])


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
    assert SampleOrder(num_samples, seed).batches(200, 10, 10).reshape(-1).tolist() == expected


def test_known_values_never_change():
    """A stored run resumes in the same order for ever; see docs/decisions/0002-sample-order.md before editing these numbers."""
    assert SampleOrder(10, 0).batch(1, 12).tolist() == [8, 9, 4, 1, 2, 3, 6, 0, 7, 5, 5, 3]
    assert SampleOrder(1_000_003, 7).batch(1_000_000, 4).tolist() == [518900, 240117, 253023, 545309]
    assert samples_hash(SampleOrder(1_000_003, 7).batch(1_000_000, 4)) == "8ca74785c73e20bf"


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
    order = SampleOrder(50_000_000, 0)
    start = time.perf_counter()
    order.batch(1_000_000, 512)
    assert time.perf_counter() - start < 0.1
