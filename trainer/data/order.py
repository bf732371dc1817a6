"""In which order samples are seen: a pure function of (seed, step), the same on every machine and for every layout."""

from __future__ import annotations

import hashlib
import math

import numpy as np

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
        left = math.isqrt(num_samples - 1) + 1
        self._left, self._right = np.uint64(left), np.uint64(-(-num_samples // left))

    def batch(self, step: int, global_batch: int) -> np.ndarray:
        """The sample ids of a step: positions (step - 1) * global_batch up to step * global_batch - 1 of the stream.

        Epochs follow each other without padding or dropping, so a batch may hold the end of one and the beginning of the next.

        Args:
            step: counted from 1; every step costs the same.
            global_batch: samples per step over all ranks.

        Returns:
            int64 (global_batch,).
        """
        return self.batches(step, 1, global_batch)[0]

    def batches(self, first: int, num_steps: int, global_batch: int) -> np.ndarray:
        """The batches of consecutive steps at once, int64 (num_steps, global_batch): many small ones cost little more than one."""
        assert first >= 1, "steps count from 1"
        begin = (first - 1) * global_batch
        ids = self._ids(np.arange(begin, begin + num_steps * global_batch, dtype=np.int64))
        return ids.reshape(num_steps, global_batch)

    def _ids(self, positions: np.ndarray) -> np.ndarray:
        """The samples at ascending positions (n,) of the stream."""
        epochs, indices = np.divmod(positions, self.num_samples)
        first = int(epochs[0])
        keys = np.stack([self._epoch_keys(epoch) for epoch in range(first, int(epochs[-1]) + 1)], axis=1)[:, epochs - first]
        ids = self._permute(indices.astype(np.uint64), keys)
        outside = np.flatnonzero(ids >= self.num_samples)
        while outside.size:
            ids[outside] = self._permute(ids[outside], keys[:, outside])
            outside = outside[ids[outside] >= self.num_samples]
        return ids.astype(np.int64)

    def _epoch_keys(self, epoch: int) -> np.ndarray:
        return np.frombuffer(hashlib.shake_256(f"isotrain order {self.seed} {epoch}".encode()).digest(8 * _ROUNDS), "<u8")

    def _permute(self, points: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """One pass of the network over points (n,) below a * b with keys (rounds, n)."""
        left, right = np.divmod(points, self._right)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = _add(left, _scramble(right, even, self._left), self._left)
            right = _add(right, _scramble(left, odd, self._right), self._right)
        return left * self._right + right


def samples_hash(ids: np.ndarray) -> str:
    """The first 16 hex digits of the SHA-256 of sample ids as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()[:16]


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
