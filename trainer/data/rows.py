"""Packed rows: fixed windows over a split's flat token stream, cut when they are asked for."""

from __future__ import annotations

import numpy as np

from trainer.types import Rows


class PackedRows:
    """Rows of ``length`` slots and one token more, so that the last slot has a target; only the last row is padded.

    Row i is ``tokens[i * length : (i + 1) * length + 1]``: neighbours share one token, and every token but a document's first is
    a target exactly once in an epoch.

    Args:
        tokens: (T,) the stream, memory-mapped or not.
        starts: (D,) int64, ascending: where each document begins; the first is 0.
        length: slots per row.
        fill: token that pads the last row.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, length: int, fill: int):
        self._starts, self._length, self._fill = starts, length, fill
        targets = max(tokens.size - 1, 0)
        self._len = -(-targets // length)
        self._num_whole = targets // length
        self._last = tokens[self._num_whole * length :]
        width = length + 1
        self._windows = (
            np.lib.stride_tricks.sliding_window_view(tokens, width)[::length] if self._num_whole else np.zeros((1, width), tokens.dtype)
        )

    def __len__(self) -> int:
        return self._len

    def take(self, sample_ids: np.ndarray) -> Rows:
        """Cuts rows.

        Args:
            sample_ids: (B,) int64; -1 gives a copy of row 0.
        """
        width = self._length + 1
        rows = np.maximum(sample_ids, 0)
        assert rows.max(initial=0) < len(self), "a sample id beyond the corpus: the order was made for another one"
        tokens = self._windows[np.minimum(rows, max(self._num_whole - 1, 0))].astype(np.int64)
        filled = np.full(rows.size, width)
        partial = rows >= self._num_whole
        if partial.any():
            tokens[partial, : self._last.size] = self._last
            tokens[partial, self._last.size :] = self._fill
            filled[partial] = self._last.size
        starts = self._document_starts(rows * self._length, filled)
        return Rows(tokens=tokens, positions=_positions(starts), starts=starts, filled=filled, sample_ids=sample_ids)

    def _document_starts(self, begins: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Marks (B, L + 1) where documents begin in the windows that begin at ``begins`` (B,)."""
        width = self._length + 1
        marks = np.zeros((begins.size, width), bool)
        first, end = np.searchsorted(self._starts, (begins, begins + filled))
        counts = end - first
        total = int(counts.sum())
        if total:
            windows = np.arange(begins.size)
            window = np.repeat(windows, counts)
            place = np.arange(total) + (first - np.cumsum(counts) + counts)[window]
            marks.reshape(-1)[self._starts[place] + (windows * width - begins)[window]] = True
        return marks


def _positions(starts: np.ndarray) -> np.ndarray:
    """Distance of each slot (B, L + 1) from the last document start in its row, or from the row's start."""
    resets = starts.copy()
    resets[:, 0] = True
    begins = np.flatnonzero(resets)
    lengths = np.diff(begins, append=resets.size)
    return (np.arange(resets.size) - np.repeat(begins, lengths)).reshape(resets.shape)
