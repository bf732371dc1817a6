"""A split of a prepared corpus on disk: all its tokens in one flat file, and where each document begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.errors import Refused
from trainer.types import Vocabulary

_STARTS = np.dtype("<i8")


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrowest little-endian type that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


class StreamWriter:
    """Appends documents to a split's two files; close it to have them complete.

    Args:
        folder: receives ``SPLIT.tokens`` and ``SPLIT.starts``.
        split: its name.
        vocabulary: each document becomes its bos, the tokens, its eos, as far as it has them.
    """

    def __init__(self, folder: Path, split: str, vocabulary: Vocabulary):
        self._size, self._dtype = vocabulary.size, token_dtype(vocabulary.size)
        self._before = [] if vocabulary.bos is None else [vocabulary.bos]
        self._after = [] if vocabulary.eos is None else [vocabulary.eos]
        self._tokens = (folder / f"{split}.tokens").open("wb")
        self._starts = (folder / f"{split}.starts").open("wb")
        self.num_documents = self.num_tokens = self.num_bytes = 0

    def append(self, ids: Sequence[int], num_bytes: int) -> None:
        """Adds one document of ``num_bytes`` bytes of text.

        Raises:
            Refused: the tokenizer gave an id outside its own vocabulary.
        """
        document = np.array([*self._before, *ids, *self._after], np.int64)
        if document.size == 0:
            return
        if document.max() >= self._size:
            raise Refused(
                f"The tokenizer gave token id {document.max()} but its vocabulary ends at {self._size - 1}. "
                "Its tokenizer.json is inconsistent: set data.tokenizer.path to another, or to None to train one."
            )
        self._starts.write(np.array([self.num_tokens], _STARTS).tobytes())
        self._tokens.write(document.astype(self._dtype).tobytes())
        self.num_documents += 1
        self.num_tokens += document.size
        self.num_bytes += num_bytes

    def close(self) -> dict[str, int]:
        """Closes the files and returns how many documents, tokens and bytes of text they hold."""
        self._tokens.close()
        self._starts.close()
        return {"documents": self.num_documents, "tokens": self.num_tokens, "bytes": self.num_bytes}


def open_stream(folder: Path, split: str, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps a split into memory, read-only.

    Returns:
        Its tokens (T,) and the place of each document's first token (D,), int64.
    """
    return _map(folder / f"{split}.tokens", token_dtype(vocabulary_size)), _map(folder / f"{split}.starts", _STARTS)


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    # A plain array over the map: slicing the memmap class itself costs microseconds each time.
    return np.asarray(np.memmap(path, dtype, "r")).view(np.ndarray)
