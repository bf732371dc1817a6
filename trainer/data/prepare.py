"""A corpus, prepared once: tokenized, split, and kept as flat token streams that every later run maps into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from trainer.data.build import METADATA, TOKENIZER, build_corpus, damage, label_keys, nothing_left
from trainer.data.cache import build_once, locked
from trainer.data.fingerprint import StatIndex, hash_settings
from trainer.data.held_out import TRAIN, VALIDATION
from trainer.data.rows import PackedRows, PaddedRows
from trainer.data.samples import AnySet, MixedSet, SampleSet, padded_set
from trainer.data.streams import open_labels, open_stream, stem
from trainer.data.tokenizer import find_tokenizer, hash_files
from trainer.errors import Refused
from trainer.types import Needs, Vocabulary

if TYPE_CHECKING:
    from trainer.data.config import Data
    from trainer.protocols import Source

FORMAT = 3
"""Of the prepared files; part of the fingerprint."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        folder: where it is kept; other runs read it too, so it is never written to.
        vocabulary: of its tokenizer.
        fingerprint: stands for its content, its split and its tokenizer; names the folder.
        needs: which fields it has, and how they become rows.
        packed: whether documents follow each other in a row; else each record has its own.
        too_long: ``data.too_long``, for padded rows.
        parts: per source and split: ``documents``, ``bytes`` of text, and ``tokens`` per field.
        labels: the names of the classes; None: there are none.
        bad: by source, records skipped because they could not be used; ``bad_kinds`` says why, and how many of each kind.
        num_leaked: training records left out because their first text is held out as well.
        num_empty: records left out because a text of theirs has no token.
        train_called: what sentences call the records of ``train``.
    """

    folder: Path
    vocabulary: Vocabulary
    fingerprint: str
    needs: Needs
    packed: bool
    too_long: str
    parts: dict[str, dict[str, dict[str, Any]]]
    labels: tuple[str, ...] | None = None
    bad: dict[str, int] = field(default_factory=dict)
    bad_kinds: dict[str, int] = field(default_factory=dict)
    num_leaked: int = 0
    num_empty: int = 0
    train_called: str = TRAIN

    @property
    def num_bad(self) -> int:
        """Of all sources."""
        return sum(self.bad.values())

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that ``transformers.AutoTokenizer`` loads."""
        return self.folder / TOKENIZER

    @property
    def sequence_length(self) -> int:
        """Slots of a row of the first field."""
        return next(iter(self.needs.fields.values())).stride

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Per split: ``documents``, ``tokens`` and ``bytes`` of text, over all sources and fields."""
        return {split: self._counted([part[split] for part in self.parts.values()]) for split in (TRAIN, VALIDATION)}

    def samples(self, split: str) -> AnySet:
        """The samples of ``train`` or ``validation``; the latter may have none.

        Raises:
            Refused: records are longer than a padded row and ``too_long`` is ``refuse``.
        """
        if split not in self._opened:
            sets = {part: self._part(split, part) for part in self.parts}
            self._opened[split] = MixedSet(sets) if len(sets) > 1 else next(iter(sets.values()))
        return self._opened[split]

    @cached_property
    def _opened(self) -> dict[str, AnySet]:
        """The splits that have been asked for: finding what is too long takes a pass over all records."""
        return {}

    def _part(self, split: str, part: str) -> SampleSet:
        name, vocabulary = stem(split, part), self.vocabulary
        streams = {
            field: (*open_stream(self.folder, f"{name}.{field}", vocabulary.size), self.needs.fields[field]) for field in self.needs.fields
        }
        if self.packed:
            return SampleSet({field: PackedRows(*stream, vocabulary.fill) for field, stream in streams.items()})
        labels = open_labels(self.folder / f"{name}.labels", self.needs.label, len(self.labels or ())) if self.needs.label else None
        rows = {field: PaddedRows(*stream, vocabulary.fill, vocabulary.eos) for field, stream in streams.items()}
        return padded_set(rows, labels, self.too_long, self.train_called if split == TRAIN else split)

    @staticmethod
    def _counted(parts: list[dict[str, Any]]) -> dict[str, int]:
        return {
            "documents": sum(part["documents"] for part in parts),
            "tokens": sum(sum(part["tokens"].values()) for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
        }


def prepare(data: Data, needs: Needs, pretrained: str | None = None, quiet: bool = False) -> Corpus:
    """Returns the corpus that ``data`` describes, preparing it first unless that has been done before.

    Any number of processes may call this at once: one prepares and speaks, the others wait. No process group is needed.

    Args:
        data: the config group.
        needs: which texts and labels are read (``Objective.needs``); the rows' lengths do not decide what is prepared.
        pretrained: folder or hub id of a pretrained model, whose tokenizer is used unless ``data.tokenizer.path`` names another.
        quiet: progress as lines even on a terminal.

    Raises:
        Refused: there is no text or too little of it, too much of it is unusable, the tokenizer cannot be used, the cache cannot
            be written, or another process failed to prepare it or took too long.
    """
    if streamed := [key for key, source in data.sources().items() if getattr(source, "streaming", False)]:
        raise Refused(f"{streamed[0]}.streaming=true is for training: nothing of such a set is prepared. Leave it out here.")
    sources = data.open(needs)
    corpus = prepare_sources(data, needs, sources, pretrained, quiet)
    _check(corpus, data, {part: source.root for part, source in sources.items()})
    return corpus


def packs(data: Data, needs: Needs) -> bool:
    """Whether documents follow each other in a row."""
    packed = needs.packs if data.packing is None else data.packing
    assert not packed or (needs.packs and len(needs.fields) == 1 and needs.label is None), "the static gate refuses data.packing=true here"
    return packed


def prepare_sources(
    data: Data,
    needs: Needs,
    sources: Mapping[str, Source],
    pretrained: str | None,
    quiet: bool,
    nothing: Callable[..., Refused] = nothing_left,
) -> Corpus:
    """As ``prepare``, of sources that have been opened, and without a look at whether there is enough to train on.

    ``nothing`` says that no record is left, with the arguments of ``nothing_left``.
    """
    named = data.tokenizer.path or pretrained
    tokenizer = find_tokenizer(named) if named else None
    cache = cache_folder(data)
    with using(cache):
        fingerprint = _fingerprint(data, needs, sources, tokenizer, cache)
        folder = cache / fingerprint
        build_once(folder, lambda empty: build_corpus(empty, data, needs, sources, tokenizer, quiet, nothing), damage, data.prepare_timeout)
    return _open(folder, fingerprint, data, needs)


def _open(folder: Path, fingerprint: str, data: Data, needs: Needs) -> Corpus:
    metadata = json.loads((folder / METADATA).read_text())
    vocabulary: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in metadata["vocabulary"].items()
    }
    return Corpus(
        folder=folder,
        vocabulary=Vocabulary(**vocabulary),
        fingerprint=fingerprint,
        needs=needs,
        packed=packs(data, needs),
        too_long=data.too_long,
        parts=metadata["parts"],
        labels=None if metadata["labels"] is None else tuple(metadata["labels"]),
        bad=metadata["bad"],
        bad_kinds=metadata["bad_kinds"],
        num_leaked=metadata["leaked"],
        num_empty=metadata["empty"],
    )


def cache_folder(data: Data) -> Path:
    """Where prepared corpora are kept.

    Raises:
        Refused: the folder cannot be made.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isotrain"
    folder = Path(data.cache_dir).expanduser() if data.cache_dir else default
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"The cache folder {folder} cannot be made ({error.strerror}). Set data.cache_dir to a folder that can be written."
        ) from error
    return folder


@contextmanager
def using(cache: Path) -> Iterator[None]:
    """Says in a sentence that the cache cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"The cache folder {cache} cannot be used ({error.strerror or error}). Set data.cache_dir to a folder that can be written."
        ) from error


def _fingerprint(data: Data, needs: Needs, sources: Mapping[str, Source], tokenizer: Path | None, cache: Path) -> str:
    return hash_settings(
        {
            "format": FORMAT,
            "content": _digests(sources, cache, data.prepare_timeout),
            "fields": list(needs.fields),
            "label": needs.label,
            "validation_fraction": data.validation_fraction,
            "tokenizer": hash_files(tokenizer) if tokenizer else [data.tokenizer.vocab_size, sorted(needs.special_tokens)],
            "tokenizers": tokenizers.__version__,
        }
    )


def _digests(sources: Mapping[str, Source], cache: Path, timeout: float) -> list[tuple[str, str]]:
    """The name and the content's hash of each source."""
    roots = "\n".join(source.root for source in sources.values())
    index = cache / f"index-{hash_settings({'root': roots})}.json"
    # The lock lets the first of many ranks read the corpus and the others the index it wrote.
    with locked(index.with_suffix(".lock"), timeout):
        known = StatIndex(index)
        found = [(part, source.digest(known)) for part, source in sources.items()]
        known.save()
    return found


def _check(corpus: Corpus, data: Data, roots: Mapping[str, str]) -> None:
    """Refuses what cannot be trained on; of a mix, the sources that are drawn from."""
    check_bad(corpus, data.max_bad, roots)
    shares = data.shares()
    drawn = [part for part in corpus.parts if any(shares[part])]
    for part in drawn:
        _check_size(corpus, data, part, roots[part])
    if corpus.needs.label in ("class", "classes") and len(corpus.labels or ()) < (2 if corpus.needs.label == "class" else 1):
        found = f"all records have the label {corpus.labels[0]!r}" if corpus.labels else "no record has a label"
        raise Refused(f"There are no classes to tell apart: {found}. Name the column of the labels with {label_keys(data)}.")
    corpus.samples(VALIDATION)  # data.too_long=refuse speaks here, before any process group
    train = corpus.samples(TRAIN).parts
    for part in drawn:
        if not len(train[part]):
            raise Refused(
                f"data.too_long=skip leaves no record of {roots[part]} to train on: all {train[part].num_too_long:,} are longer than their row ({train[part].too_long_first}). "
                "Raise data.sequence_length or data.target_length, or set data.too_long=truncate."
            )


def check_bad(corpus: Corpus, max_bad: int, roots: Mapping[str, str]) -> None:
    """Refuses a source with too many bad records: they were few enough for the run that prepared it."""
    for part, count in corpus.bad.items():
        if count > max_bad:
            raise Refused(f"{roots[part]} has {count:,} bad records, more than data.max_bad={max_bad}. Repair them or raise data.max_bad.")


def _check_size(corpus: Corpus, data: Data, part: str, root: str) -> None:
    train, held_out = corpus.parts[part][TRAIN], corpus.parts[part][VALIDATION]
    if train["documents"] == 0:
        raise nothing_left(root, held_out["documents"], data.validation_fraction, corpus.bad[part], corpus.num_leaked)
    window = next(iter(corpus.needs.fields.values()))
    tokens = sum(train["tokens"].values())
    if corpus.packed and tokens < window.width:
        raise Refused(
            f"The corpus{f' {part}' if part else ''} has {tokens} tokens to train on, less than one row of data.sequence_length={data.sequence_length}"
            + (" and its last target" if window.width > window.stride else "")
            + ". Add text or lower data.sequence_length."
        )
