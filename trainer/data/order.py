"""In which order samples are seen: a pure function of (seed, step), the same on every machine and for every layout."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from trainer.types import Draws

if TYPE_CHECKING:
    from trainer.protocols import Order

_ROUNDS = 16
_MIX_1 = np.uint64(0x9E3779B97F4A7C15)
_MIX_2 = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


class SampleOrder:
    """The concatenation of per-epoch permutations of ``range(num_samples)``, each computed pointwise.

    The fixed specification, in 64-bit unsigned arithmetic that wraps around (docs/decisions/0002-sample-order.md says why):

    1. Position p of the stream has epoch e = p // N and index i = p % N.
    2. The keys k[0..15] of an epoch are the first 128 bytes of SHAKE-256 of the ASCII text ``isotrain order SEED EPOCH``, read as
       little-endian 64-bit numbers.
    3. a = ceil(sqrt(N)), b = ceil(N / a). i is split into left = i // b (below a) and right = i % b (below b).
    4. Rounds r = 0 .. 15: for even r, left = (left + F(right, k[r], a)) mod a; for odd r, right = (right + F(left, k[r], b)) mod b.
       F(x, k, n): h = (x + k) * 0x9E3779B97F4A7C15; h ^= h >> 32; h *= 0xD6E8FEB86659FD93; F = ((h >> 32) * n) >> 32.
    5. i = left * b + right. If i >= N, repeat from 3 with this i (cycle-walking). The result is the sample id.

    Steps 3 and 4 are a Feistel network on the rectangle a x b, whose area exceeds N by less than a, so almost no point is walked twice.

    Args:
        num_samples: N, at least 1 and at most 2**62.
        seed: not negative.
    """

    def __init__(self, num_samples: int, seed: int):
        assert 1 <= num_samples <= 1 << 62 and seed >= 0, "the corpus has been checked to have rows, the config to have a seed"
        self.num_samples, self.seed = num_samples, seed

    def at(self, positions: np.ndarray) -> Draws:
        """The samples at positions (n,) of the stream, and in which epoch each is."""
        epochs, indices = np.divmod(positions, self.num_samples)
        distinct, which = np.unique(epochs, return_inverse=True)
        texts = [f"isotrain order {self.seed} {epoch}" for epoch in distinct.tolist()]
        return Draws(permuted(indices, self.num_samples, texts, which), epochs)


def step_draws(order: Order, first: int, num_steps: int, global_batch: int) -> Draws:
    """The samples of consecutive steps: step s takes positions (s - 1) * global_batch up to s * global_batch - 1 of the stream.

    Epochs follow each other without padding or dropping, so a step may hold the end of one and the beginning of the next. Many small
    steps at once cost little more than one.

    Args:
        order: the stream.
        first: the first step, counted from 1; every step costs the same.
        num_steps: how many steps, at least 1.
        global_batch: samples per step over all ranks.

    Returns:
        Arrays (num_steps, global_batch).
    """
    assert first >= 1, "steps count from 1"
    begin = (first - 1) * global_batch
    draws = order.at(np.arange(begin, begin + num_steps * global_batch, dtype=np.int64))
    return Draws(draws.ids.reshape(num_steps, global_batch), draws.epochs.reshape(num_steps, global_batch))


def samples_hash(ids: np.ndarray) -> str:
    """The first 16 hex digits of the SHA-256 of sample ids as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()[:16]


def permuted(indices: np.ndarray, size: int, texts: list[str], which: np.ndarray) -> np.ndarray:
    """Where permutations of ``range(size)`` send points: steps 2 to 5 of the specification of ``SampleOrder``.

    Args:
        indices: int64 (n,), each below ``size``.
        size: N.
        texts: one key text for each permutation.
        which: (n,), the place in ``texts`` of each point's permutation.

    Returns:
        int64 (n,).
    """
    if not texts:
        return indices
    keys = np.stack([np.frombuffer(hashlib.shake_256(text.encode()).digest(8 * _ROUNDS), "<u8") for text in texts], axis=1)[:, which]
    left = math.isqrt(size - 1) + 1
    sides = np.uint64(left), np.uint64(-(-size // left))
    points = _network(indices.astype(np.uint64), keys, *sides)
    outside = np.flatnonzero(points >= size)
    while outside.size:
        points[outside] = _network(points[outside], keys[:, outside], *sides)
        outside = outside[points[outside] >= size]
    return points.astype(np.int64)


def _network(points: np.ndarray, keys: np.ndarray, a: np.uint64, b: np.uint64) -> np.ndarray:
    """One pass over points (n,) below a * b with keys (rounds, n)."""
    left, right = np.divmod(points, b)
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = _add(left, _scramble(right, even, a), a)
        right = _add(right, _scramble(left, odd, b), b)
    return left * b + right


def _scramble(half: np.ndarray, key: np.ndarray, size: np.uint64) -> np.ndarray:
    """F of the specification: a pseudo-random number below ``size`` for each (half, key)."""
    mixed = (half + key) * _MIX_1
    mixed ^= mixed >> _HALF
    mixed *= _MIX_2
    mixed >>= _HALF
    mixed *= size
    return mixed >> _HALF


def _add(a: np.ndarray, b: np.ndarray, size: np.uint64) -> np.ndarray:
    """(a + b) mod size for a, b < size: where nothing is to be subtracted, the difference wraps around and is the larger one."""
    total = a + b
    return np.minimum(total, total - size)
