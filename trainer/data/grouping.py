"""Batches of samples of similar length, out of any order and without leaving its contract."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.order import permuted
from trainer.types import Draws

if TYPE_CHECKING:
    from trainer.protocols import Order


class LengthGrouped:
    """Another order's stream, permuted inside windows so that each step's samples have similar lengths.

    The fixed specification (docs/decisions/0008-mixing-and-grouping.md says why):

    1. Window w is positions w * W * B up to (w + 1) * W * B - 1, with W = ``window`` and B = ``global_batch``.
    2. Its draws in the given order are sorted by length, equal lengths by position, and cut into W batches of B.
    3. Batch j of the window, as positions go, is sorted batch P(j). P is steps 2 to 5 of the specification of ``SampleOrder`` for
       N = W, with the text ``isotrain groups SEED WINDOW``.

    So a window holds what it held before, and no step depends on anything but the step: world size, micro-batch and workers do not
    enter. A step is found in the time that one window takes; the next ones of that window are then there.

    Args:
        order: the stream to permute.
        lengths: (num_samples,), each sample's length by its id, in any unit.
        global_batch: samples per step over all ranks.
        seed: not negative.
        window: steps among which samples are exchanged: more save more padding, and cost more at the first step.
    """

    def __init__(self, order: Order, lengths: np.ndarray, global_batch: int, seed: int, window: int = 64):
        assert lengths.shape == (order.num_samples,), "one length for each sample"
        assert global_batch >= 1 and seed >= 0 and window >= 1, "the config has been checked"
        self.num_samples = order.num_samples
        self._order, self._lengths, self._seed = order, lengths, seed
        self._shape = window, global_batch
        # Steps of one window are read one after another; the second place is for a batch that reaches into the next.
        self._window = lru_cache(maxsize=2)(self._sort)

    def at(self, positions: np.ndarray) -> Draws:
        """The samples at ascending positions (n,) of the stream, and in which epoch each is."""
        windows, places = np.divmod(positions, self._shape[0] * self._shape[1])
        ids, epochs = np.empty((2, positions.size), np.int64)
        for window in np.unique(windows).tolist():
            here = windows == window
            draws = self._window(window)
            ids[here], epochs[here] = draws.ids[places[here]], draws.epochs[places[here]]
        return Draws(ids, epochs)

    def _sort(self, window: int) -> Draws:
        """All draws of a window as they are to be seen."""
        steps, global_batch = self._shape
        size = steps * global_batch
        draws = self._order.at(np.arange(window * size, (window + 1) * size, dtype=np.int64))
        by_length = np.argsort(self._lengths[draws.ids], kind="stable").reshape(steps, global_batch)
        batches = permuted(np.arange(steps), steps, [f"isotrain groups {self._seed} {window}"], np.zeros(steps, np.int64))
        seen = by_length[batches].reshape(-1)
        return Draws(draws.ids[seen], draws.epochs[seen])
