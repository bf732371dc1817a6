"""A split of a prepared corpus on disk: all tokens of a field in one flat file, where each document begins, and the labels."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import Refused
from trainer.types import Vocabulary

_STARTS = np.dtype("<i8")
_CLASS, _NUMBER = np.dtype("<i8"), np.dtype("<f4")

MOST_CLASSES = 1 << 16
"""More different labels are a column of texts, names or numbers. A classifier's last layer has a row for each."""

_SHOWN = 60
"""Characters of a label in a message."""

Label = str | Sequence[str] | float
"""As in ``trainer.types.Record``."""


def stem(split: str, part: str) -> str:
    """What the names of a split's files begin with; ``part`` names one source of a mix, empty for the only one."""
    return f"{split}.{part}" if part else split


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The narrowest little-endian type that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def joined(documents: Sequence[Sequence[int]], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Documents one after the other, each as its bos, the ids given for it, its eos, as far as the vocabulary has them.

    Returns:
        Tokens int64 (T,), and where each document begins, int64 (D,).

    Raises:
        Refused: the tokenizer gave an id outside its own vocabulary.
    """
    before = [] if vocabulary.bos is None else [vocabulary.bos]
    after = [] if vocabulary.eos is None else [vocabulary.eos]
    flat: list[int] = []
    starts = []
    for ids in documents:
        starts.append(len(flat))
        flat += before
        flat += ids
        flat += after
    tokens = np.fromiter(flat, np.int64, len(flat))
    if tokens.max(initial=0) >= vocabulary.size:
        raise Refused(
            f"The tokenizer gave token id {tokens.max()} but its vocabulary ends at {vocabulary.size - 1}. "
            "Its tokenizer.json is inconsistent: set data.tokenizer.path to another, or to None to train one."
        )
    return tokens, np.array(starts, _STARTS)


class StreamWriter:
    """Appends documents to a stream's two files; close it to have them complete.

    Args:
        folder: receives ``NAME.tokens`` and ``NAME.starts``.
        name: of the stream.
        vocabulary: each document becomes its bos, the tokens, its eos, as far as it has them.
    """

    def __init__(self, folder: Path, name: str, vocabulary: Vocabulary):
        self._vocabulary, self._dtype = vocabulary, token_dtype(vocabulary.size)
        self._tokens = (folder / f"{name}.tokens").open("wb")
        self._starts = (folder / f"{name}.starts").open("wb")
        self.num_tokens = 0

    def append(self, documents: Sequence[Sequence[int]]) -> None:
        """Adds documents, given as ids without frame.

        Raises:
            Refused: the tokenizer gave an id outside its own vocabulary.
        """
        tokens, starts = joined(documents, self._vocabulary)
        self._starts.write((starts + self.num_tokens).tobytes())
        self._tokens.write(tokens.astype(self._dtype).tobytes())
        self.num_tokens += tokens.size

    def close(self) -> None:
        """Closes the files."""
        self._tokens.close()
        self._starts.close()


class LabelTable:
    """Numbers class names as they come; their place in ``names``, known at the end, is what is kept.

    Args:
        kind: as in ``Needs.label``.
        keys: where the user names the labels, for messages.
    """

    def __init__(self, kind: str, keys: str = "data.label"):
        self.kind, self._keys = kind, keys
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The provisional number of a class.

        Raises:
            Refused: there are too many to be classes.
        """
        number = self._numbers.setdefault(name, len(self._numbers))
        if number >= MOST_CLASSES:
            raise Refused(
                f"There are more than {MOST_CLASSES:,} different labels, the newest {_short(name)}: that is no set of classes. "
                f"Name a column of classes with {self._keys}, or set objective.kind=regression for numbers."
            )
        return number

    @property
    def names(self) -> tuple[str, ...] | None:
        """All classes: by value where every name is a whole number, else by alphabet; None for numbers."""
        if self.kind == "number":
            return None
        if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in self._numbers):
            return tuple(sorted(self._numbers, key=lambda name: (int(name), name)))
        return tuple(sorted(self._numbers))

    def places(self) -> np.ndarray:
        """int64 (C,): the place in ``names`` of each provisional number."""
        place = {name: place for place, name in enumerate(self.names or ())}
        return np.array([place[name] for name in self._numbers], np.int64)


class LabelWriter:
    """Collects the labels of a split: 8 bytes each in memory, or 8 per class that one has.

    Args:
        path: receives int64 places of classes, float32 numbers, or float32 rows of zeros and ones.
        table: shared by all splits and sources.
    """

    def __init__(self, path: Path, table: LabelTable):
        self._path, self._table = path, table
        self._values: array[Any] = array("d" if table.kind == "number" else "q")
        self._counts = array("q")

    def append(self, label: Label) -> None:
        """Adds one record's label, of the table's kind."""
        if self._table.kind == "number":
            assert isinstance(label, int | float)
            self._values.append(label)
        elif self._table.kind == "class":
            assert isinstance(label, str)
            self._values.append(self._table.number(label))
        else:
            assert not isinstance(label, str | float | int)
            numbers = {self._table.number(name) for name in label}
            self._values.extend(numbers)
            self._counts.append(len(numbers))

    def close(self) -> None:
        """Writes the file; all splits must have been read before."""
        values = np.array(self._values)
        if self._table.kind == "number":
            values.astype(_NUMBER).tofile(self._path)
        elif self._table.kind == "class":
            self._table.places()[values].astype(_CLASS).tofile(self._path)
        else:
            self._write_rows(self._table.places()[values] if values.size else values)

    def _write_rows(self, places: np.ndarray) -> None:
        """In blocks, because n records times C classes may be more than memory holds."""
        num_classes, ends = self._table.places().size, np.cumsum(self._counts)
        with self._path.open("wb") as file:
            for first in range(0, ends.size, _BLOCK):
                last = min(first + _BLOCK, ends.size)
                begin = ends[first - 1] if first else 0
                rows = np.zeros((last - first, num_classes), _NUMBER)
                rows[np.repeat(np.arange(last - first), self._counts[first:last]), places[begin : ends[last - 1]]] = 1
                file.write(rows.tobytes())


_BLOCK = 4096


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def open_stream(folder: Path, name: str, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps a stream into memory, read-only.

    Returns:
        Its tokens (T,) and the place of each document's first token (D,), int64.
    """
    return _map(folder / f"{name}.tokens", token_dtype(vocabulary_size)), _map(folder / f"{name}.starts", _STARTS)


def open_labels(path: Path, kind: str, num_classes: int) -> np.ndarray:
    """Maps labels into memory, read-only: (n,) int64 classes or float32 numbers, (n, ``num_classes``) float32 zeros and ones."""
    labels = _map(path, _CLASS if kind == "class" else _NUMBER)
    return labels.reshape(-1, num_classes) if kind == "classes" else labels


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    # A plain array over the map: slicing the memmap class itself costs microseconds each time.
    return np.asarray(np.memmap(path, dtype, "r")).view(np.ndarray)
