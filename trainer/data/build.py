"""How a corpus is written: each document to its split, tokenized in parallel batches, into flat streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.progress import progress
from trainer.data.sources import Skipped
from trainer.data.streams import StreamWriter
from trainer.data.tokenizer import copy_tokenizer, load_tokenizer, train_tokenizer
from trainer.errors import Refused
from trainer.types import Vocabulary

if TYPE_CHECKING:
    from trainer.data.config import Data
    from trainer.data.sources import Files

METADATA = "metadata.json"
TOKENIZER = "tokenizer"
TRAIN, VALIDATION = "train", "validation"

_BATCH_BYTES = 1 << 22

Assigned = tuple[str, str, int]
"""A document's split, text and size in bytes."""


def build_corpus(folder: Path, data: Data, source: Files, tokenizer: Path | None, quiet: bool) -> None:
    """Writes a prepared corpus: ``SPLIT.tokens`` and ``SPLIT.starts`` per split, ``tokenizer/`` and ``metadata.json``.

    Args:
        folder: empty.
        data: the config group.
        source: the documents; read once, or twice where a tokenizer is trained.
        tokenizer: folder of the one to use; None: train one on the training documents.
        quiet: progress as lines even on a terminal.

    Raises:
        Refused: there is nothing to train on, or too much is unreadable.
    """
    size = source.num_bytes()
    if tokenizer:
        copy_tokenizer(tokenizer, folder / TOKENIZER)
    else:
        with progress("Training the tokenizer", size, quiet) as advance:
            documents = _assign(source, Skipped(data.max_bad), data.validation_fraction, advance)
            train_tokenizer((text for split, text, _ in documents if split == TRAIN), data.tokenizer.vocab_size, folder / TOKENIZER)
    skipped = Skipped(data.max_bad)
    with progress("Tokenizing", size, quiet) as advance:
        vocabulary, counts = _tokenize(folder, _assign(source, skipped, data.validation_fraction, advance))
    skipped.log()
    if counts[TRAIN]["documents"] == 0:
        raise Refused(
            f"No document is left to train on: of {source.root}, {counts[VALIDATION]['documents']} were held out by "
            f"data.validation_fraction={data.validation_fraction:g}, {len(skipped.reasons)} were unreadable, the rest is blank. Add text or hold out less."
        )
    metadata = {"vocabulary": asdict(vocabulary), "counts": counts, "bad": len(skipped.reasons), "files": _sizes(folder)}
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


def _assign(source: Files, skipped: Skipped, validation_fraction: float, advance: Callable[[int], None]) -> Iterator[Assigned]:
    """Says of each document where it belongs. Equal documents go to the same split, on every machine and in every order."""
    for _, text in source.documents(skipped):
        raw = text.encode()
        place = int.from_bytes(hashlib.sha256(raw).digest()[:8]) / 2**64
        advance(len(raw))
        yield VALIDATION if place < validation_fraction else TRAIN, text, len(raw)


def _tokenize(folder: Path, documents: Iterator[Assigned]) -> tuple[Vocabulary, dict[str, dict[str, int]]]:
    tokenizer, vocabulary = load_tokenizer(folder / TOKENIZER)
    writers = {split: StreamWriter(folder, split, vocabulary) for split in (TRAIN, VALIDATION)}
    for batch in _batches(documents):
        encodings = tokenizer.encode_batch_fast([text for _, text, _ in batch], add_special_tokens=False)
        for (split, _, num_bytes), encoding in zip(batch, encodings, strict=True):
            writers[split].append(encoding.ids, num_bytes)
    return vocabulary, {split: writer.close() for split, writer in writers.items()}


def _batches(documents: Iterator[Assigned]) -> Iterator[list[Assigned]]:
    """Groups documents so that the tokenizer's threads have work and memory stays bounded."""
    batch: list[Assigned] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document[2]
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
