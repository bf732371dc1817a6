"""A set that is read while training: what is known of it beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.blocks import HASH_BYTES, Blocks, Maker, text_hash
from trainer.data.build import METADATA, TOKENIZER, damage
from trainer.data.cache import build_once
from trainer.data.fingerprint import hash_settings
from trainer.data.held_out import TRAIN, VALIDATION
from trainer.data.prepare import Corpus, cache_folder, check_bad, packs, prepare_sources, using
from trainer.data.records import RecordFiles, Row, to_records
from trainer.data.samples import AnySet, SampleSet
from trainer.data.shards import Dealer, Shards
from trainer.data.sources import Skipped
from trainer.data.stream_config import Streamed
from trainer.data.templates import BadRecord
from trainer.data.tokenizer import copy_tokenizer, find_tokenizer, hash_files, load_tokenizer
from trainer.errors import Refused, TrainingFailed
from trainer.types import Needs

if TYPE_CHECKING:
    from trainer.protocols import Source

FORMAT = 2
"""Of a stream's order and states and of what is kept for it; part of its fingerprint and of the folders' names."""

_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class StreamedCorpus(Corpus):
    """What is known of a set before it is read.

    ``samples("train")`` are those of its first records only, for a look; ``parts`` counts nothing of what is to be trained on.

    Attributes:
        shards: the set.
        maker: of samples.
        first: samples of the first records.
        held_out: the prepared held-out records; None: there are none.
        texts: hashes of their first texts, which are not trained on.
    """

    shards: Shards
    maker: Maker
    first: SampleSet
    held_out: Corpus | None
    texts: frozenset[bytes]

    def samples(self, split: str) -> AnySet:
        """See above; ``validation`` may have none."""
        if split == TRAIN:
            return self.first
        return self.maker.all_rows([]) if self.held_out is None else self.held_out.samples(TRAIN)

    def blocks(self, data: Streamed, seed: int, data_rank: int, data_size: int) -> Blocks:
        """The stream of one data rank."""
        dealer = Dealer(self.shards, data_rank, data_size, seed if data.shuffle_buffer else None)
        return Blocks(dealer, self.maker, seed, data.shuffle_buffer, data.max_bad, self.texts)


def open_streamed(data: Streamed, needs: Needs, pretrained: str | None = None, quiet: bool = False) -> StreamedCorpus:
    """Looks at a set's first records and prepares what is held out.

    Args:
        data: the config group, with ``streaming``.
        needs, pretrained, quiet: see ``trainer.data.prepare.prepare``.

    Raises:
        Refused: there is no tokenizer, the objective needs labels, there is nothing to read, or it has no such column.
    """
    if needs.label is not None:
        raise Refused(
            "data.streaming=true does not go with an objective that reads labels, since which classes there are shows only at the end of "
            "the set: leave data.streaming out."
        )
    named = data.tokenizer.path or pretrained
    if named is None:
        raise Refused(
            "data.streaming=true needs a tokenizer that exists, because none can be trained on what has not been read: set "
            "data.tokenizer.path. To train one on a sample of the set: isotrain prepare with data.path=SAMPLE, which says where it is."
        )
    source = find_tokenizer(named)
    folder = _kept(data, {"tokenizer": hash_files(source)}, lambda empty: copy_tokenizer(source, empty / TOKENIZER))
    maker = Maker(*load_tokenizer(folder / TOKENIZER), needs, packs(data, needs), data.too_long)
    shards, apart = data.stream(needs)
    first = _look(shards, maker, data.max_bad)
    held_out = None if apart is None else _hold_out(data, needs, apart, named, quiet)
    texts = _texts(data, apart, held_out.fingerprint) if apart and held_out else frozenset()
    nothing = {"documents": 0, "bytes": 0, "tokens": {}}
    return StreamedCorpus(
        folder=folder,
        vocabulary=maker.vocabulary,
        fingerprint=_fingerprint(shards, needs, hash_files(source), held_out),
        needs=needs,
        packed=maker.packed,
        too_long=data.too_long,
        parts={"": {TRAIN: nothing, VALIDATION: nothing if held_out is None else held_out.parts[""][TRAIN]}},
        shards=shards,
        maker=maker,
        first=first,
        held_out=held_out,
        texts=texts,
    )


def _hold_out(data: Streamed, needs: Needs, apart: Source, tokenizer: str, quiet: bool) -> Corpus:
    """The held-out records, prepared as a corpus of their own, in its ``train`` split."""
    key = f"data.{data.held_out_key}={getattr(data, data.held_out_key)}"
    if isinstance(apart, RecordFiles):
        apart = replace(apart, root=key)  # else what is wrong with them would be said of data.path

    def nothing(root: str, num_held_out: int, fraction: float, num_bad: int, num_leaked: int) -> Refused:
        return Refused(
            f"{key} holds no record to measure with: {num_bad} are bad and the rest is blank. Name other records, or leave it out "
            "and set data.validation_fraction=0."
        )

    prepared = prepare_sources(replace(data, validation_fraction=0.0), needs, {"": apart}, tokenizer, quiet, nothing)
    held_out = replace(prepared, train_called="held-out")
    check_bad(held_out, data.max_bad, {"": key})
    samples = held_out.samples(TRAIN)  # data.too_long=refuse speaks here, before any process group
    if not len(samples):
        raise Refused(
            f"data.too_long=skip leaves no record of {key}: all {samples.num_too_long:,} are longer than their row ({samples.too_long_first}). "
            "Raise data.sequence_length or data.target_length, or set data.too_long=truncate."
        )
    return held_out


def _kept(data: Streamed, of: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """A folder of the cache that is written once, named by what it is made ``of``."""

    def build(empty: Path) -> None:
        write(empty)
        files = {path.relative_to(empty).as_posix(): path.stat().st_size for path in empty.rglob("*") if path.is_file()}
        (empty / METADATA).write_text(json.dumps({"files": files}))

    cache = cache_folder(data)
    folder = cache / hash_settings({"format": FORMAT} | of)
    with using(cache):
        build_once(folder, build, damage, data.prepare_timeout)
    return folder


def _texts(data: Streamed, apart: Source, fingerprint: str) -> frozenset[bytes]:
    """The hashes of the held-out first texts, read once: the records may lie behind a network."""

    def write(empty: Path) -> None:
        (empty / "texts").write_bytes(b"".join(sorted({text_hash(record) for record in apart.records(Skipped(data.max_bad))})))

    raw = (_kept(data, {"texts": fingerprint}, write) / "texts").read_bytes()
    return frozenset(raw[place : place + HASH_BYTES] for place in range(0, len(raw), HASH_BYTES))


def _look(shards: Shards, maker: Maker, max_bad: int) -> SampleSet:
    """The samples of the first records; what is wrong with all of them is said before anything begins."""
    skipped = Skipped(max_bad)

    def good() -> Iterator[tuple[str, Row, str | None]]:
        for _, name, row in chain.from_iterable(shards.read_on(shard) for shard in range(shards.num_shards)):
            if isinstance(row, BadRecord):
                skipped.add(name, row.reason, row.detail)
            else:
                yield name, row, None

    try:
        records = list(islice(to_records(shards.columns, good(), skipped, shards.root), _LOOKED_AT))
    except TrainingFailed as failure:  # nothing has begun yet
        raise Refused(str(failure)) from failure
    found = maker.all_rows(records)
    if not len(found):
        raise Refused(f"The first {len(records)} records of {shards.root} hold no text to train on. Check data.path and its columns.")
    return found


def _fingerprint(shards: Shards, needs: Needs, tokenizer: str, held_out: Corpus | None) -> str:
    return hash_settings(
        {
            "format": FORMAT,
            "stream": shards.settings(),
            "columns": str(shards.columns),
            "fields": list(needs.fields),
            "tokenizer": tokenizer,
            "held_out": held_out.fingerprint if held_out else None,
        }
    )
