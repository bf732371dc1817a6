"""Which records are held out: decided record by record from content, so that no text is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from trainer.data.sources import Skipped
from trainer.errors import Refused
from trainer.protocols import Source
from trainer.types import Needs, Record

TRAIN, VALIDATION = "train", "validation"
LEAKED = "leaked"
"""What a training record is instead whose first text is held out as well."""

_HASHES = 1 << 64


class Assigned(NamedTuple):
    """A record, where it belongs (``TRAIN``, ``VALIDATION`` or ``LEAKED``), and the size of its texts in bytes."""

    part: str
    split: str
    record: Record
    num_bytes: int


class HeldOut:
    """Reads sources and says of each record where it belongs, the same on every machine and in every order.

    A record's group, or without one its first text, falls by its hash into the held-out fraction or not; a record that names its split
    belongs there. So equal first texts may be on both sides only where groups or splits are given. In that case one pass over all sources
    collects 64 bits of hash of each held-out first text, about 100 bytes of memory for each (a Python integer in a set: 82 measured at two
    million, up to twice that just after the set has grown), and training records with such a text are ``LEAKED``.

    Args:
        sources: by name; the rule is the same over all of them.
        needs: names the first text.
        fraction: ``data.validation_fraction``.
        max_bad: ``data.max_bad``, for each source.
    """

    def __init__(self, sources: Mapping[str, Source], needs: Needs, fraction: float, max_bad: int):
        self._sources, self._fields, self._fraction, self._max_bad = sources, tuple(needs.fields), fraction, max_bad
        self._seen: set[int] | None = None

    def needs_survey(self) -> bool:
        """Whether records come with a group or a split, which each source's first record tells."""
        first = [next(iter(source.records(Skipped(self._max_bad))), None) for source in self._sources.values()]
        return any(record is not None and _is_told(record) for record in first)

    def survey(self, advance: Callable[[int], None]) -> None:
        """Notes the first text of every held-out record."""
        held_out = set()
        for _, split, first, _, num_bytes in self._read(self.skipped()):
            advance(num_bytes)
            if split == VALIDATION:
                held_out.add(first)
        self._seen = held_out

    def skipped(self) -> dict[str, Skipped]:
        """One fresh count of unusable records per source, for one pass."""
        return {part: Skipped(self._max_bad) for part in self._sources}

    def read(self, skipped: Mapping[str, Skipped], advance: Callable[[int], None]) -> Iterator[Assigned]:
        """Yields the records of all sources, one source after the other.

        Raises:
            Refused: too many are unusable, or a source's first record has no group or split and a later one has.
        """
        for part, split, first, record, num_bytes in self._read(skipped):
            advance(num_bytes)
            if self._seen is None and _is_told(record):
                raise Refused(
                    f"{record.name} has a group or a split, but the first record of {self._sources[part].root} has none. Give all records one, or none."
                )
            leaks = split == TRAIN and self._seen is not None and first in self._seen
            yield Assigned(part, LEAKED if leaks else split, record, num_bytes)

    def _read(self, skipped: Mapping[str, Skipped]) -> Iterator[tuple[str, str, int, Record, int]]:
        """Yields (source, split by its own account, hash of the first text, record, bytes)."""
        for part, source in self._sources.items():
            for record in source.records(skipped[part]):
                try:
                    raw = [record.texts[field].encode() for field in self._fields]
                except UnicodeEncodeError:
                    skipped[part].add(record.name, "half a character")
                    continue
                first = _hash(raw[0])
                yield part, record.split or self._drawn(record, first), first, record, sum(map(len, raw))

    def _drawn(self, record: Record, first: int) -> str:
        """The split that the hash of the group, or of the first text, says."""
        place = first if record.group is None else _hash(record.group.encode("utf-8", "surrogatepass"))
        return VALIDATION if place / _HASHES < self._fraction else TRAIN


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.sha256(raw).digest()[:8])


def _is_told(record: Record) -> bool:
    return record.group is not None or record.split is not None
