"""How a corpus is written: each record to its split, tokenized in parallel batches, into flat streams."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from trainer.data.held_out import LEAKED, TRAIN, VALIDATION, Assigned, HeldOut
from trainer.data.progress import progress
from trainer.data.streams import LabelTable, LabelWriter, StreamWriter, stem
from trainer.data.tokenizer import copy_tokenizer, load_tokenizer, train_tokenizer
from trainer.errors import Refused
from trainer.types import Needs, Vocabulary

if TYPE_CHECKING:
    from trainer.data.config import Data
    from trainer.data.sources import Skipped
    from trainer.protocols import Source

METADATA = "metadata.json"
TOKENIZER = "tokenizer"

_BATCH_BYTES = 1 << 21
_ENCODED_AT_ONCE = 2
"""Two batches share the tokenizer's threads, so that a batch's last long document does not keep the other cores waiting."""

Ids = dict[str, list[list[int]]]
"""By field, the token ids of some records."""


def nothing_left(root: str, num_held_out: int, fraction: float, num_bad: int, num_leaked: int) -> Refused:
    """What to say of a source without a record to train on: where its records are instead."""
    return Refused(
        f"No document is left to train on: of {root}, {num_held_out} were held out by data.validation_fraction={fraction:g}, "
        f"{num_bad} were bad, {num_leaked} had a held-out text, the rest is blank. Add text or hold out less."
    )


def label_keys(data: Data) -> str:
    """Where labels are named, in words: a key for each source that has one."""
    keys = [f"{key}.label" for key, source in data.sources().items() if hasattr(source, "label")]
    return " and ".join(keys) or "data.label"


def build_corpus(
    folder: Path,
    data: Data,
    needs: Needs,
    sources: Mapping[str, Source],
    tokenizer: Path | None,
    quiet: bool,
    nothing: Callable[..., Refused] = nothing_left,
) -> None:
    """Writes a prepared corpus: per split, source and field a stream, per split and source the labels, ``tokenizer/`` and ``metadata.json``.

    Args:
        folder: empty.
        data: the config group.
        needs: which texts and labels are read.
        sources: by name; the only one has an empty name. Read once, once more where a tokenizer is trained, and once more where records
            have groups or splits.
        tokenizer: folder of the one to use; None: train one on the training documents of all sources.
        quiet: progress as lines even on a terminal.
        nothing: what to say when no record is left, with the arguments of ``nothing_left``.

    Raises:
        Refused: there is nothing to train on, too much is unusable, or there are too many classes.
    """
    size = sum(source.num_bytes() for source in sources.values())
    held_out = HeldOut(sources, needs, data.validation_fraction, data.max_bad)
    if held_out.needs_survey():
        with progress("Looking for held-out texts", size, quiet) as advance:
            held_out.survey(advance)
    if tokenizer:
        copy_tokenizer(tokenizer, folder / TOKENIZER)
    else:
        with progress("Training the tokenizer", size, quiet) as advance:
            records = held_out.read(held_out.skipped(), advance)
            texts = (item.record.texts[field] for item in records if item.split == TRAIN for field in needs.fields)
            train_tokenizer(texts, data.tokenizer.vocab_size, folder / TOKENIZER, needs.special_tokens)
    skipped = held_out.skipped()
    with progress("Tokenizing", size, quiet) as advance:
        table = LabelTable(needs.label, label_keys(data)) if needs.label else None
        written = _tokenize(folder, needs, list(sources), held_out.read(skipped, advance), table)
    for one in skipped.values():
        one.log()
    if all(counts[TRAIN]["documents"] == 0 for counts in written["parts"].values()):
        roots = " and ".join(source.root for source in sources.values())
        num_held_out = sum(counts[VALIDATION]["documents"] for counts in written["parts"].values())
        num_bad = sum(len(one.reasons) for one in skipped.values())
        raise nothing(roots, num_held_out, data.validation_fraction, num_bad, written["leaked"])
    metadata = {**written, **_bad(skipped), "files": _sizes(folder)}
    (folder / METADATA).write_text(json.dumps(metadata, indent=2))


def damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder; None: every file has the size with which it was written."""
    try:
        written = json.loads((folder / METADATA).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{METADATA} cannot be read"
    found = _sizes(folder)
    wrong = [f"{name} has {found.get(name, 0)} of {size} bytes" for name, size in written.items() if found.get(name) != size]
    return ", ".join(wrong) or None


def _tokenize(folder: Path, needs: Needs, parts: list[str], records: Iterator[Assigned], table: LabelTable | None) -> dict[str, Any]:
    """Writes all streams and labels; returns what is to be known of them."""
    tokenizer, vocabulary = load_tokenizer(folder / TOKENIZER)
    writers = {
        (part, split): _SplitWriter(folder, stem(split, part), needs, vocabulary, table) for part in parts for split in (TRAIN, VALIDATION)
    }
    dropped: Counter[str] = Counter()
    framed = vocabulary.bos is not None or vocabulary.eos is not None
    for batch, encoded in _encoded(tokenizer, tuple(needs.fields), _batches(_without_leaked(records, dropped))):
        by_writer: dict[tuple[str, str], tuple[list[Assigned], Ids]] = {}
        for item, ids in zip(batch, encoded, strict=True):
            if not framed and not all(ids):
                dropped["empty"] += 1
                continue
            items, fields = by_writer.setdefault((item.part, item.split), ([], {field: [] for field in needs.fields}))
            items.append(item)
            for field, found in zip(needs.fields, ids, strict=True):
                fields[field].append(found)
        for key, (items, fields) in by_writer.items():
            writers[key].append(items, fields)
    return {
        "vocabulary": asdict(vocabulary),
        "parts": {part: {split: writers[part, split].close() for split in (TRAIN, VALIDATION)} for part in parts},
        "labels": table.names if table else None,
        "leaked": dropped[LEAKED],
        "empty": dropped["empty"],
    }


class _SplitWriter:
    """One split of one source: a stream per field, and labels."""

    def __init__(self, folder: Path, name: str, needs: Needs, vocabulary: Vocabulary, table: LabelTable | None):
        self._streams = {field: StreamWriter(folder, f"{name}.{field}", vocabulary) for field in needs.fields}
        self._labels = LabelWriter(folder / f"{name}.labels", table) if table else None
        self._num_documents = self._num_bytes = 0

    def append(self, items: list[Assigned], ids: Ids) -> None:
        for field, writer in self._streams.items():
            writer.append(ids[field])
        self._num_documents += len(items)
        for item in items:
            self._num_bytes += item.num_bytes
            if self._labels:
                assert item.record.label is not None, "the source gives what the objective needs"
                self._labels.append(item.record.label)

    def close(self) -> dict[str, Any]:
        """Completes the files, when all records of all splits have been appended."""
        if self._labels:
            self._labels.close()
        for writer in self._streams.values():
            writer.close()
        tokens = {field: writer.num_tokens for field, writer in self._streams.items()}
        return {"documents": self._num_documents, "bytes": self._num_bytes, "tokens": tokens}


def _encoded(
    tokenizer: Tokenizer, fields: tuple[str, ...], batches: Iterator[list[Assigned]]
) -> Iterator[tuple[list[Assigned], list[tuple[list[int], ...]]]]:
    """Yields each batch with its records' ids by field; later batches are read and tokenized while the caller is busy with one."""

    def encode(batch: list[Assigned]) -> list[Any]:
        return tokenizer.encode_batch_fast([item.record.texts[field] for item in batch for field in fields], add_special_tokens=False)

    def ready(batch: list[Assigned], job: Future[list[Any]]) -> tuple[list[Assigned], list[tuple[list[int], ...]]]:
        ids = (encoding.ids for encoding in job.result())
        return batch, list(zip(*[ids] * len(fields), strict=True))

    with ThreadPoolExecutor(_ENCODED_AT_ONCE) as threads:
        waiting: list[tuple[list[Assigned], Future[list[Any]]]] = []
        for batch in batches:
            waiting.append((batch, threads.submit(encode, batch)))
            if len(waiting) > _ENCODED_AT_ONCE:
                yield ready(*waiting.pop(0))
        while waiting:
            yield ready(*waiting.pop(0))


def _without_leaked(records: Iterator[Assigned], dropped: Counter[str]) -> Iterator[Assigned]:
    for item in records:
        if item.split == LEAKED:
            dropped[LEAKED] += 1
        else:
            yield item


def _batches(records: Iterator[Assigned]) -> Iterator[list[Assigned]]:
    """Groups records so that the tokenizer's threads have work and memory stays bounded."""
    batch: list[Assigned] = []
    size = 0
    for item in records:
        batch.append(item)
        size += item.num_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bad(skipped: Mapping[str, Skipped]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for one in skipped.values():
        kinds.update(one.kinds)
    return {"bad": {part: len(one.reasons) for part, one in skipped.items()}, "bad_kinds": dict(kinds)}


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
