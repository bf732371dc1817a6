"""Rows of one field, cut from its flat token stream when they are asked for: windows over the stream, or one document each."""

from __future__ import annotations

import numpy as np

from trainer.types import Rows, Window

SLOT_MULTIPLE = 8
"""Padded rows get a multiple of so many slots: tensor cores want that, and few widths mean few shapes."""


class PackedRows:
    """Fixed windows over the stream; only the last row may be filled up.

    Row i is ``tokens[i * stride : i * stride + width]``. With ``width`` = ``stride`` every token is in exactly one row. With one token
    more, neighbours share that token, so that a row's last slot has a target too and every token but a document's first is a target
    exactly once in an epoch.

    Args:
        tokens: (T,) the stream, memory-mapped or not.
        starts: (D,) int64, ascending: where each document begins; the first is 0.
        window: stride and width.
        fill: token that fills up the last row.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, window: Window, fill: int):
        self._starts, self.window, self._fill = starts, window, fill
        stride, width = window.stride, window.width
        self._len = -(-max(tokens.size - (width - stride), 0) // stride)
        self._num_whole = max(tokens.size - width + stride, 0) // stride
        self._last = tokens[self._num_whole * stride :]
        self._windows = (
            np.lib.stride_tricks.sliding_window_view(tokens, width)[::stride] if self._num_whole else np.zeros((1, width), tokens.dtype)
        )

    def __len__(self) -> int:
        return self._len

    @property
    def lengths(self) -> np.ndarray:
        """int64 (n,): tokens that each row takes."""
        return np.full(self._len, self.window.width)

    def width(self, ids: np.ndarray) -> int:
        """Tokens per row that these rows are cut to: always the window's."""
        return self.window.width

    def take(self, ids: np.ndarray, width: int | None = None) -> Rows:
        """Cuts rows.

        Args:
            ids: (B,) int64; -1 gives a copy of row 0.
            width: as ``width`` says; rows have no other.
        """
        stride, full = self.window.stride, self.window.width
        assert width in (None, full), "packed rows have one width"
        rows = np.maximum(ids, 0)
        assert rows.max(initial=0) < len(self), "a sample id beyond the corpus: the order was made for another one"
        tokens = self._windows[np.minimum(rows, max(self._num_whole - 1, 0))].astype(np.int64)
        filled = np.full(rows.size, full)
        partial = rows >= self._num_whole
        if partial.any():
            tokens[partial, : self._last.size] = self._last
            tokens[partial, self._last.size :] = self._fill
            filled[partial] = self._last.size
        starts = self._document_starts(rows * stride, filled)
        return Rows(tokens=tokens, positions=_positions(starts), starts=starts, filled=filled)

    def _document_starts(self, begins: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Marks (B, width) where documents begin in the windows that begin at ``begins`` (B,)."""
        width = self.window.width
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


class PaddedRows:
    """One document per row, filled up to the width that is asked for.

    A document that is longer loses its end: the row keeps its first tokens, the last of them replaced by ``eos`` where there is one.

    Args:
        tokens: (T,) the stream, memory-mapped or not.
        starts: (D,) int64, ascending: where each document begins; the first is 0.
        window: a row has at most its width.
        fill: token that fills up.
        eos: token that ends each document; None: documents end anyhow.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, window: Window, fill: int, eos: int | None):
        self._tokens, self._starts, self.window, self._fill, self._eos = tokens, starts, window, fill, eos
        self.lengths = np.diff(starts, append=tokens.size)
        """int64 (n,): tokens of each document, however long."""

    def __len__(self) -> int:
        return self._starts.size

    def width(self, ids: np.ndarray) -> int:
        """Tokens per row that hold these documents whole, if the window allows it; the row's slots are a multiple of ``SLOT_MULTIPLE``."""
        ahead = self.window.width - self.window.stride
        slots = max(int(self.lengths[ids].max()) - ahead, 1)
        return min(-(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE + ahead, self.window.width)

    def take(self, ids: np.ndarray, width: int | None = None) -> Rows:
        """Cuts rows.

        Args:
            ids: (B,) int64; -1 gives a copy of row 0.
            width: tokens per row; None: as ``width(ids)`` says.
        """
        rows = np.maximum(ids, 0)
        assert rows.max(initial=0) < len(self), "a sample id beyond the corpus: the order was made for another one"
        width = self.width(rows) if width is None else width
        filled = np.minimum(self.lengths[rows], width)
        slots = np.arange(width)
        real = slots < filled[:, None]
        tokens = np.full((rows.size, width), self._fill)
        tokens[real] = self._tokens[(self._starts[rows][:, None] + slots)[real]]
        if self._eos is not None:
            tokens[self.lengths[rows] > width, -1] = self._eos
        starts = np.zeros(tokens.shape, bool)
        starts[:, 0] = True
        return Rows(tokens=tokens, positions=np.tile(slots, (rows.size, 1)), starts=starts, filled=filled)


def _positions(starts: np.ndarray) -> np.ndarray:
    """Distance of each slot (B, width) from the last document start in its row, or from the row's start."""
    resets = starts.copy()
    resets[:, 0] = True
    begins = np.flatnonzero(resets)
    lengths = np.diff(begins, append=resets.size)
    return (np.arange(resets.size) - np.repeat(begins, lengths)).reshape(resets.shape)
