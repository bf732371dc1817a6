"""From records to samples while training: block by block, each a function of where it begins."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trainer.data.order import permuted
from trainer.data.rows import PackedRows, PaddedRows
from trainer.data.samples import SampleSet, padded_set
from trainer.data.shards import Dealer, Place
from trainer.data.streams import joined
from trainer.data.templates import BadRecord
from trainer.distributed.log import LOGGER
from trainer.errors import Refused
from trainer.types import Needs, Record, Vocabulary

State = dict[str, Any]
"""Where a block begins, as JSON: ``epoch``, ``block`` (its number in the epoch), ``place`` (``trainer.data.shards.Place``), ``rest``
(tokens that do not fill a row yet), ``bad`` (see ``BadRecords``) and ``too_long`` (records of the epoch so far that were cut or left out,
as ``data.too_long`` says)."""

HASH_BYTES = 8
"""Of ``text_hash``."""

_NOT_SHUFFLED = 256
_BLOCK_CHARACTERS = 32 << 20
_CHARACTERS_AT_ONCE = 1 << 21
_NAMED = 3


@dataclass(frozen=True)
class Block:
    """Some records' samples.

    Attributes:
        before, after: the states where it begins and ends.
        samples: counted from 0.
        order: int64 (n,), the ids of all samples in the order in which they are due.
        epoch: of the records.
    """

    before: State
    after: State
    samples: SampleSet
    order: np.ndarray
    epoch: int


@dataclass(frozen=True)
class Maker:
    """Makes samples of records, as a prepared corpus has them.

    Attributes:
        tokenizer, vocabulary: see ``trainer.data.tokenizer.load_tokenizer``.
        needs: which texts are read, and how they become rows.
        packed: whether documents follow each other in a row.
        too_long: ``data.too_long``, for padded rows.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    needs: Needs
    packed: bool
    too_long: str

    def make(self, records: Sequence[Record], rest: State | None = None) -> tuple[SampleSet, State | None]:
        """The samples of some records, and the tokens that do not fill a packed row yet.

        Args:
            records: at least one.
            rest: what the records before left.

        Raises:
            Refused: a record is longer than a padded row and ``too_long`` is ``refuse``.
        """
        encoded, names = self._encode(records)
        streams = {field: joined(ids, self.vocabulary) for field, ids in encoded.items()}
        if self.packed:
            ((field, (tokens, starts)),) = streams.items()
            return self._pack(field, *_behind(rest, tokens, starts))
        windows, fill, eos = self.needs.fields, self.vocabulary.fill, self.vocabulary.eos
        rows = {field: PaddedRows(*stream, windows[field], fill, eos) for field, stream in streams.items()}
        return padded_set(rows, None, self.too_long, "streamed", names), None

    def all_rows(self, records: Sequence[Record]) -> SampleSet:
        """The samples of some records by themselves, the last row filled up; records that are too long are cut."""
        windows, fill, eos = self.needs.fields, self.vocabulary.fill, self.vocabulary.eos
        streams = {field: joined(ids, self.vocabulary) for field, ids in self._encode(records)[0].items()}
        if self.packed:
            return SampleSet({field: PackedRows(*stream, windows[field], fill) for field, stream in streams.items()})
        return SampleSet({field: PaddedRows(*stream, windows[field], fill, eos) for field, stream in streams.items()})

    def _pack(self, field: str, tokens: np.ndarray, starts: np.ndarray) -> tuple[SampleSet, State]:
        window = self.needs.fields[field]
        whole = max(tokens.size - window.width + window.stride, 0) // window.stride
        end = whole * window.stride
        left = base64.b64encode(tokens[end:].astype("<u4").tobytes()).decode()  # JSON would take a line for each
        rest = {"tokens": left, "starts": (starts[starts >= end] - end).tolist()}
        return SampleSet({field: PackedRows(tokens, starts, window, self.vocabulary.fill)}, keep=np.arange(whole)), rest

    def _encode(self, records: Sequence[Record]) -> tuple[dict[str, list[list[int]]], list[str]]:
        """The ids of each field, and the records' names; records with a text that has no token are left out, as preparing leaves them out."""
        fields = tuple(self.needs.fields)
        framed = self.vocabulary.bos is not None or self.vocabulary.eos is not None
        found: dict[str, list[list[int]]] = {field: [] for field in fields}
        names = []
        for some in _in_pieces(records, _CHARACTERS_AT_ONCE):
            texts = [record.texts[field] for record in some for field in fields]
            ids = (encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            for record, own in zip(some, zip(*[ids] * len(fields), strict=True), strict=True):
                if framed or all(own):
                    names.append(record.name)
                    for field, tokens in zip(fields, own, strict=True):
                        found[field].append(tokens)
        return found, names


class BadRecords:
    """Counts the records of an epoch that one data rank cannot use.

    Args:
        limit: ``data.max_bad``.
        state: of an epoch that goes on.

    Attributes:
        state: ``count`` in this epoch, and the ``first`` of them in words; JSON.
    """

    def __init__(self, limit: int, state: State | None = None):
        self._limit = limit
        self.state: State = dict(state or {"count": 0, "first": None})

    def add(self, name: str, bad: BadRecord) -> None:
        """Counts one.

        Raises:
            Refused: it is one more than the limit allows.
        """
        said = f"{name} ({bad.reason}{f': {bad.detail}' if bad.detail else ''})"
        count = self.state["count"] + 1
        self.state = {"count": count, "first": self.state["first"] or said}
        if count <= _NAMED:
            LOGGER.warning("skipped the bad record %s", said)
        if count > self._limit:
            raise Refused(
                f"One data rank has met more than data.max_bad={self._limit} bad records in this epoch, such as {said}. "
                "Repair or remove them, or raise data.max_bad to go on without them from the newest checkpoint."
            )


class Blocks:
    """The stream of one data rank, without an end: epoch after epoch, each with its own order of shards and of samples in a block.

    A block is ``shuffle`` records, fewer if they hold 32 million characters, in the order of their shards; its samples are shuffled.
    Whatever a block depends on is in the state with which it begins, so a stream goes on from there and reads no record before it.

    Args:
        dealer: gives the rank's rows.
        maker: makes samples.
        seed: ``train.seed``.
        shuffle: ``data.shuffle_buffer``; 0: samples stay in the order of their records.
        max_bad: ``data.max_bad``, per rank and epoch.
        held_out: ``text_hash`` of texts that must not be trained on.
    """

    def __init__(self, dealer: Dealer, maker: Maker, seed: int, shuffle: int, max_bad: int, held_out: frozenset[bytes] = frozenset()):
        self._dealer, self._maker, self._seed, self._shuffle = dealer, maker, seed, shuffle
        self._max_bad, self._held_out = max_bad, held_out

    def behind(self, state: State | None = None) -> Iterator[Block]:
        """Yields blocks from a state on; None: from the beginning.

        Raises:
            Refused: more records are bad than allowed, or an epoch of this rank has no record or no sample.
        """
        state = state or {"epoch": 0, "block": 0, "place": None, "rest": None, "bad": None, "too_long": 0}
        while True:
            epoch, bad, num_samples = state["epoch"], BadRecords(self._max_bad, state["bad"]), 0
            resumed = state["block"] > 0
            rows = self._records(epoch, state["place"], bad)
            for records, place in _in_blocks(rows, self._shuffle or _NOT_SHUFFLED):
                samples, rest = self._maker.make(records, state["rest"])
                too_long = state["too_long"] + samples.num_too_long
                after = {
                    "epoch": epoch,
                    "block": state["block"] + 1,
                    "place": place,
                    "rest": rest,
                    "bad": dict(bad.state),
                    "too_long": too_long,
                }
                num_samples += len(samples) or rest != state["rest"]
                if len(samples):
                    yield Block(state, after, samples, self._order(len(samples), epoch, state["block"]), epoch)
                state = after
            if not num_samples and not resumed:
                raise self._nothing(bad)
            state = {"epoch": epoch + 1, "block": 0, "place": None, "rest": state["rest"], "bad": None, "too_long": 0}

    def _records(self, epoch: int, place: Place | None, bad: BadRecords) -> Iterator[tuple[Record | None, Place]]:
        """The rank's records of an epoch, None for those that are not used, each with the place behind it."""
        columns = self._dealer.shards.columns
        for behind, (_, name, row) in self._dealer.rows(epoch, place):
            try:
                if isinstance(row, BadRecord):
                    raise row
                record: Record | None = columns.record(name, row, None)
            except BadRecord as fault:
                bad.add(name, fault)
                record = None
            if record is not None and self._held_out and text_hash(record) in self._held_out:
                record = None
            yield record, behind

    def _order(self, count: int, epoch: int, block: int) -> np.ndarray:
        ids = np.arange(count)
        if not self._shuffle:
            return ids
        return permuted(ids, count, [f"isotrain stream {self._seed} {self._dealer.rank} {epoch} {block}"], np.zeros(count, np.int64))

    def _nothing(self, bad: BadRecords) -> Refused:
        dealer, count = self._dealer, bad.state["count"]
        skipped = f" ({count} are bad, such as {bad.state['first']})" if count else ""
        return Refused(
            f"Data rank {dealer.rank} of {dealer.size} has no record of {dealer.shards.root} to train on{skipped}: all are blank, bad, too long or "
            "held out, or there are fewer than ranks. Add records, start fewer ranks, or leave data.streaming out."
        )


def text_hash(record: Record) -> bytes:
    """64 bits of SHA-256 of a record's first text: records that are equal in it are never on both sides of a split."""
    return hashlib.sha256(next(iter(record.texts.values())).encode()).digest()[:HASH_BYTES]


def _behind(rest: State | None, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stream that goes on behind what is left of the one before."""
    if rest is None:
        return tokens, starts
    before = np.frombuffer(base64.b64decode(rest["tokens"]), "<u4").astype(np.int64)
    return np.concatenate([before, tokens]), np.concatenate([np.array(rest["starts"], np.int64), starts + before.size])


def _in_blocks(rows: Iterable[tuple[Record | None, Place]], limit: int) -> Iterator[tuple[list[Record], Place]]:
    """Records in blocks, each with the place behind it."""
    records: list[Record] = []
    size = 0
    for record, place in rows:
        if record is None:
            continue
        records.append(record)
        size += sum(map(len, record.texts.values()))
        if len(records) >= limit or size >= _BLOCK_CHARACTERS:
            yield records, place
            records, size = [], 0
    if records:
        yield records, place


def _in_pieces(records: Sequence[Record], characters: int) -> Iterator[list[Record]]:
    """Records in pieces of so many characters."""
    piece: list[Record] = []
    size = 0
    for record in records:
        piece.append(record)
        size += sum(map(len, record.texts.values()))
        if size >= characters:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
