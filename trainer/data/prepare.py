"""A corpus, prepared once: tokenized, split, and kept as flat token streams that every later run maps into memory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from trainer.data.build import METADATA, TOKENIZER, TRAIN, build_corpus, damage
from trainer.data.cache import build_once, locked
from trainer.data.fingerprint import StatIndex, hash_settings
from trainer.data.rows import PackedRows
from trainer.data.streams import open_stream
from trainer.data.tokenizer import find_tokenizer, hash_files
from trainer.errors import Refused
from trainer.types import Vocabulary

if TYPE_CHECKING:
    from trainer.data.config import Data
    from trainer.data.sources import Files

FORMAT = 1
"""Of the prepared files; part of the fingerprint."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        folder: where it is kept; other runs read it too, so it is never written to.
        vocabulary: of its tokenizer.
        fingerprint: stands for its content, its split and its tokenizer; names the folder.
        sequence_length: slots of a packed row.
        counts: per split: ``documents``, ``tokens`` and ``bytes`` of text.
        num_bad: documents skipped because they could not be read.
    """

    folder: Path
    vocabulary: Vocabulary
    fingerprint: str
    sequence_length: int
    counts: dict[str, dict[str, int]]
    num_bad: int

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that ``transformers.AutoTokenizer`` loads."""
        return self.folder / TOKENIZER

    def rows(self, split: str) -> PackedRows:
        """The packed rows of ``train`` or ``validation``; the latter may have none."""
        fill = next(id for id in (self.vocabulary.pad, self.vocabulary.eos, 0) if id is not None)
        return PackedRows(*open_stream(self.folder, split, self.vocabulary.size), self.sequence_length, fill)


def prepare(data: Data, pretrained: str | None = None, quiet: bool = False) -> Corpus:
    """Returns the corpus that ``data`` describes, preparing it first unless that has been done before.

    Any number of processes may call this at once: one prepares and speaks, the others wait. No process group is needed.

    Args:
        data: the config group.
        pretrained: folder or hub id of a pretrained model, whose tokenizer is used unless ``data.tokenizer.path`` names another.
        quiet: progress as lines even on a terminal.

    Raises:
        Refused: there is no text or too little of it, too much of it is unreadable, the tokenizer cannot be used, the cache cannot
            be written, or another process failed to prepare it or took too long.
    """
    source = data.source()
    named = data.tokenizer.path or pretrained
    tokenizer = find_tokenizer(named) if named else None
    cache = _cache_folder(data)
    try:
        fingerprint = _fingerprint(data, source, tokenizer, cache)
        folder = cache / fingerprint
        build_once(folder, lambda empty: build_corpus(empty, data, source, tokenizer, quiet), damage, data.prepare_timeout)
    except OSError as error:
        raise Refused(
            f"The cache folder {cache} cannot be used ({error.strerror or error}). Set data.cache_dir to a folder that can be written."
        ) from error
    metadata = json.loads((folder / METADATA).read_text())
    corpus = Corpus(folder, Vocabulary(**metadata["vocabulary"]), fingerprint, data.sequence_length, metadata["counts"], metadata["bad"])
    _check(corpus, data)
    return corpus


def _cache_folder(data: Data) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isotrain"
    folder = Path(data.cache_dir).expanduser() if data.cache_dir else default
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"The cache folder {folder} cannot be made ({error.strerror}). Set data.cache_dir to a folder that can be written."
        ) from error
    return folder


def _fingerprint(data: Data, source: Files, tokenizer: Path | None, cache: Path) -> str:
    index = cache / f"index-{hash_settings({'root': source.root})}.json"
    # The lock lets the first of many ranks read the corpus and the others the index it wrote.
    with locked(index.with_suffix(".lock"), data.prepare_timeout):
        known = StatIndex(index)
        content = source.digest(known)
        known.save()
    return hash_settings(
        {
            "format": FORMAT,
            "content": content,
            "validation_fraction": data.validation_fraction,
            "tokenizer": hash_files(tokenizer) if tokenizer else data.tokenizer.vocab_size,
            "tokenizers": tokenizers.__version__,
        }
    )


def _check(corpus: Corpus, data: Data) -> None:
    if corpus.num_bad > data.max_bad:
        raise Refused(
            f"The corpus has {corpus.num_bad} unreadable documents, more than data.max_bad={data.max_bad}. Repair them or raise data.max_bad."
        )
    tokens = corpus.counts[TRAIN]["tokens"]
    if tokens <= data.sequence_length:
        raise Refused(
            f"The corpus has {tokens} tokens to train on, less than one row of data.sequence_length={data.sequence_length} and its last target. "
            "Add text or lower data.sequence_length."
        )
