"""The samples of a split: every field's rows and the label of each, for one source or for a mix of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from trainer.data.rows import PackedRows, PaddedRows
from trainer.errors import Refused
from trainer.types import Rows, Samples

FieldRows = PackedRows | PaddedRows

_NAMED = 3


class SampleSet:
    """Samples of one source, counted from 0.

    Args:
        rows: by field; all of them have as many.
        labels: (n,) or (n, C), or None.
        keep: int64 (m,), ascending: which of them count; None: all.
        num_too_long: how many have a field that does not fit into its row: left out if ``keep`` says so, else cut.
        too_long_first: the first of these, in words.

    Attributes:
        num_too_long, too_long_first: as given.
    """

    def __init__(
        self,
        rows: Mapping[str, FieldRows],
        labels: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        num_too_long: int = 0,
        too_long_first: str = "",
    ):
        sizes = {len(field) for field in rows.values()} | ({len(labels)} if labels is not None else set())
        assert len(sizes) == 1, "every sample has all fields and a label"
        self._rows, self._labels, self._keep = rows, labels, keep
        self._len = sizes.pop() if keep is None else keep.size
        self.num_too_long, self.too_long_first = num_too_long, too_long_first
        is_packed = all(isinstance(field, PackedRows) for field in rows.values())
        self._widths = {name: field.window.width for name, field in rows.items()} if is_packed else None

    def __len__(self) -> int:
        return self._len

    @property
    def parts(self) -> dict[str, SampleSet]:
        """The sources' samples by the source's name; ids count through them in this order."""
        return {"": self}

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (n,): tokens of each sample's longest field in its row."""
        longest = np.max([np.minimum(field.lengths, field.window.width) for field in self._rows.values()], axis=0)
        return longest if self._keep is None else longest[self._keep]

    def widths(self, ids: np.ndarray) -> dict[str, int]:
        """Tokens per row and field to which rows are to be cut that are to be of one shape.

        Args:
            ids: of all samples that shall have this shape; -1 does not count.
        """
        if self._widths is None:
            places = self._places(_real(ids))
            return {name: field.width(places) for name, field in self._rows.items()}
        return self._widths

    def take(self, ids: np.ndarray, epochs: np.ndarray | None = None, widths: dict[str, int] | None = None) -> Samples:
        """Cuts samples.

        Args:
            ids: int64 (B,); -1 gives a copy of sample 0.
            epochs: int64 (B,), how often each was drawn before; None: never.
            widths: by field; None: those of these samples.
        """
        widths = self.widths(ids) if widths is None else widths
        places = self._places(np.maximum(ids, 0))
        return Samples(
            ids=ids,
            epochs=np.zeros_like(ids) if epochs is None else epochs,
            rows={name: field.take(places, widths[name]) for name, field in self._rows.items()},
            labels=None if self._labels is None else self._labels[places],
        )

    def _places(self, ids: np.ndarray) -> np.ndarray:
        if self._keep is None:
            return ids  # the rows look whether they have them
        assert ids.max() < self._len, "a sample id beyond the corpus: the order was made for another one"
        return self._keep[ids]


class MixedSet:
    """Samples of several sources under one numbering: a sample's id is its own plus how many samples the sources before have.

    Args:
        parts: by the source's name; at least one has samples.
    """

    def __init__(self, parts: dict[str, SampleSet]):
        self.parts = parts
        self._sets = list(parts.values())
        self._ends = np.cumsum([len(part) for part in self._sets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_too_long(self) -> int:
        """See ``SampleSet``."""
        return sum(part.num_too_long for part in self._sets)

    @property
    def too_long_first(self) -> str:
        """See ``SampleSet``, of the first part that has any."""
        return next((f"{name}: {part.too_long_first}" for name, part in self.parts.items() if part.too_long_first), "")

    @cached_property
    def lengths(self) -> np.ndarray:
        """See ``SampleSet``."""
        return np.concatenate([part.lengths for part in self._sets])

    def widths(self, ids: np.ndarray) -> dict[str, int]:
        """See ``SampleSet``."""
        found = [part.widths(own) for part, _, own in self._split(_real(ids))]
        return {name: max(widths[name] for widths in found) for name in found[0]}

    def take(self, ids: np.ndarray, epochs: np.ndarray | None = None, widths: dict[str, int] | None = None) -> Samples:
        """See ``SampleSet``."""
        assert ids.max(initial=0) < len(self), "a sample id beyond the corpus: the order was made for another one"
        widths = self.widths(ids) if widths is None else widths
        pieces = [(places, part.take(own, None, widths)) for part, places, own in self._split(np.maximum(ids, 0))]
        places = np.argsort(np.concatenate([places for places, _ in pieces]))
        taken = [piece for _, piece in pieces]
        labels = [piece.labels for piece in taken if piece.labels is not None]
        return Samples(
            ids=ids,
            epochs=np.zeros_like(ids) if epochs is None else epochs,
            rows={name: _joined([piece.rows[name] for piece in taken], places) for name in widths},
            labels=np.concatenate(labels)[places] if labels else None,
        )

    def _split(self, ids: np.ndarray) -> list[tuple[SampleSet, np.ndarray, np.ndarray]]:
        """Each part that is asked for, the places of its samples among ``ids``, and their ids in the part."""
        part_of = np.searchsorted(self._ends, ids, side="right")
        pieces = []
        for number in np.unique(part_of):
            places = np.flatnonzero(part_of == number)
            begin = self._ends[number] - len(self._sets[number])
            pieces.append((self._sets[number], places, ids[places] - begin))
        return pieces


AnySet = SampleSet | MixedSet


def padded_set(
    rows: dict[str, PaddedRows], labels: np.ndarray | None, too_long: str, split: str, names: Sequence[str] | None = None
) -> SampleSet:
    """One record per row and field.

    Args:
        rows: by field.
        labels: see ``SampleSet``.
        too_long: what becomes of a record with a field longer than its row: ``truncate``, ``skip`` or ``refuse``.
        split: its name, for messages.
        names: of the records, for messages; None: they are numbered from 1 as they stand in the split.

    Raises:
        Refused: there are such records and ``too_long`` is ``refuse``.
    """
    over_by_field = {name: field.lengths > field.window.width for name, field in rows.items()}
    over = np.any(list(over_by_field.values()), axis=0)
    num_over = int(over.sum())
    if num_over and too_long == "refuse":
        longest = [
            f"the longest {name} has {rows[name].lengths.max():,} tokens, its row takes {rows[name].window.width:,} "
            f"({'data.target_length' if name == 'target' else 'data.sequence_length'})"
            for name, flags in over_by_field.items()
            if flags.any()
        ]
        raise Refused(
            f"{num_over:,} of {over.size:,} {split} records are longer than their row ({_first(over, names)}): {'; '.join(longest)}. "
            "Raise that, or set data.too_long=truncate or data.too_long=skip."
        )
    keep = np.flatnonzero(~over) if num_over and too_long == "skip" else None
    return SampleSet(rows, labels, keep, num_over, _first(over, names) if num_over else "")


def _first(over: np.ndarray, names: Sequence[str] | None) -> str:
    """The first few records that are too long, in words."""
    places = np.flatnonzero(over)
    told = [names[place] if names else f"{place + 1:,}" for place in places[:_NAMED].tolist()]
    return ("" if names else "number ") + ", ".join(told) + (", ..." if places.size > len(told) else "")


def _real(ids: np.ndarray) -> np.ndarray:
    """The ids that are no fillers, or sample 0, of which fillers are copies."""
    real = ids[ids >= 0]
    return real if real.size else np.zeros(1, np.int64)


def _joined(pieces: list[Rows], places: np.ndarray) -> Rows:
    """Rows of several parts, put in the order of ``places``."""
    if len(pieces) == 1:
        return pieces[0]
    return Rows(
        tokens=np.concatenate([piece.tokens for piece in pieces])[places],
        positions=np.concatenate([piece.positions for piece in pieces])[places],
        starts=np.concatenate([piece.starts for piece in pieces])[places],
        filled=np.concatenate([piece.filled for piece in pieces])[places],
    )
