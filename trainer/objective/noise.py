"""Random numbers that belong to a sample: the same for every layout, worker and resumed run, fresh in each epoch."""

from __future__ import annotations

import hashlib

import numpy as np


def uniform(seed: int, epoch: int, sample_id: int, count: int) -> np.ndarray:
    """float64 (count,) in [0, 1), a pure function of its arguments.

    The numbers are the upper 53 bits of Philox 4x64 (Salmon et al., 2011) under the first 128 bits of SHA-256 of the ASCII text
    ``isotrain noise SEED EPOCH ID``; the generator's raw output is fixed by its definition, unlike what libraries derive from it.
    """
    digest = hashlib.sha256(f"isotrain noise {seed} {epoch} {sample_id}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53
