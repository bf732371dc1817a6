"""``isotrain prepare --show N``: training samples as they reach the model, decoded, with what is predicted in colour or in marks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from trainer.assembly import build_order, collator
from trainer.commands.strips import Role, Strip, label_of, strips
from trainer.data.loader import StepLoader
from trainer.data.stream_config import Streamed
from trainer.data.stream_loader import StreamLoader
from trainer.data.streaming import StreamedCorpus
from trainer.data.tokenizer import load_tokenizer
from trainer.session.job import Job
from trainer.types import Batch, Samples, Vocabulary

_CONTEXT = 8
"""Tokens before a stretch that are decoded with it: how its first token is spelled may depend on what it follows."""
_BORDER = "╌╌╌╌ another document "
_TEXT, _SPECIAL, _SENTINEL = range(3)
_STYLES = {_TEXT: "", _SPECIAL: "cyan", _SENTINEL: "bold magenta"}
_TRUTH, _WRONG, _MASK, _BORDER_STYLE = "bold green", "red strike", "bold magenta", "yellow"
_VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥"})
_CONTROLS = str.maketrans(
    {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(range(127, 160), "\ufffd")
)
"""A text may hold what would move a terminal's cursor."""


def show(job: Job, number: int) -> None:
    """Prints the first ``number`` samples of training, in its order, as its first batches hold them."""
    writer = _Writer.of(job)
    for count, (batch, samples, row) in enumerate(islice(_samples(job), number), 1):
        writer.sample(count, batch, samples, row)
    writer.legend()


def _samples(job: Job) -> Iterator[tuple[Batch, Samples, int]]:
    """Yields (batch, samples, row) of each sample as one rank gets it, as wide as its step makes it."""
    config, corpus, collate = job.config, job.corpus, collator(job)
    collated: deque[Samples] = deque()  # the loader may be some steps ahead

    def kept(samples: Samples) -> Batch:
        collated.append(samples)
        return collate(samples)

    size = config.train.global_batch
    loader: StreamLoader | StepLoader
    if isinstance(corpus, StreamedCorpus):
        assert isinstance(config.data, Streamed)
        loader = StreamLoader(corpus.blocks(config.data, config.train.seed, 0, 1), kept, size, size, 0, 1)
    else:
        samples = corpus.samples("train")
        loader = StepLoader(samples, build_order(config, samples), kept, size, size)
    with closing(loader.steps(1, config.train.steps)) as steps:  # type: ignore[type-var]
        for _, ids, (batch,) in steps:
            samples_of_step = collated.popleft()
            for row in range(ids.size):
                yield batch, samples_of_step, row


@dataclass
class _Writer:
    """Prints samples, and remembers which marks it has used.

    Attributes:
        console: where to; in marks instead of colours where it has none.
        tokenizer, vocabulary: of the corpus.
        classes: names of the classes, if there are any.
        ends: by part of a mix, the first id beyond its samples.
    """

    console: Console
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    classes: tuple[str, ...] | None
    ends: dict[str, int]

    def __post_init__(self) -> None:
        self._colour = self.console.is_terminal and not self.console.no_color
        self._used: dict[str, Text] = {}
        self._kinds = np.zeros(self.vocabulary.size, np.int64)
        self._kinds[list(self.vocabulary.special)] = _SPECIAL
        self._kinds[list(self.vocabulary.sentinels)] = _SENTINEL

    @classmethod
    def of(cls, job: Job) -> _Writer:
        """A writer for the samples of a job."""
        parts = job.corpus.samples("train").parts
        ends = dict(zip(parts, np.cumsum([len(part) for part in parts.values()]).tolist(), strict=True))
        tokenizer, vocabulary = load_tokenizer(job.corpus.tokenizer_folder)
        return cls(job.console, tokenizer, vocabulary, job.corpus.labels, ends)

    def sample(self, count: int, batch: Batch, samples: Samples, row: int) -> None:
        """Prints one sample under a heading."""
        pieces = strips(batch, samples, row, self.vocabulary.mask)
        id, label = int(samples.ids[row]), label_of(batch, row, self.classes)
        part = next(name for name, end in self.ends.items() if id < end)
        facts = [f"number {id:,}" + (f", from {part}" if part else ""), *map(_size, pieces)]
        self.console.print()
        self.console.print(Text(f"sample {count}  ", "bold").append(", ".join(facts), "not bold dim"), soft_wrap=True)
        for strip in pieces:
            alone = len(pieces) == 1 and label is None
            if not alone:
                self._say(strip.title or "reads")
            self._lines(self._text(strip), "" if alone else "  ")
        if label is not None:
            self._say("label", f" {_safe(label)}")

    def legend(self) -> None:
        """Prints what the marks mean that were used."""
        width = max((mark.cell_len for mark in self._used.values()), default=0) + 2
        if self._used:
            self.console.print()
        for meaning, mark in self._used.items():
            self.console.print(Text().append_text(mark).append(" " * (width - mark.cell_len) + meaning, "dim"), highlight=False)

    def _say(self, title: str, more: str = "") -> None:
        self.console.print(Text(title, "bold").append(more, "not bold " + _TRUTH), soft_wrap=True)

    def _lines(self, text: Text, indent: str) -> None:
        """Prints lines, wrapped where there is somebody to read them."""
        wide = self.console.width - len(indent)
        for line in text.wrap(self.console, wide) if self.console.is_terminal else text.split("\n", allow_blank=True):
            self.console.print(Text(indent).append_text(line), highlight=False, soft_wrap=True)

    def _text(self, strip: Strip) -> Text:
        whole = Text()
        kinds = self._kinds[strip.truth]
        for begin, end in strip.runs(kinds):
            if strip.starts[begin]:
                whole.append(("" if whole.plain.endswith("\n") else "\n") + _BORDER + "╌" * 20 + "\n", _BORDER_STYLE)
                self._note("another document, apart from the one above", Text(_BORDER[:4], _BORDER_STYLE))
            whole.append_text(self._run(strip, begin, end, int(kinds[begin])))
        return whole

    def _run(self, strip: Strip, begin: int, end: int, kind: int) -> Text:
        """Tokens of one role and kind."""
        role = strip.roles[begin]
        truth = self._decode(strip.truth, begin, end)
        if role in (Role.HIDDEN, Role.REPLACED, Role.KEPT):
            return self._predicted(role, self._decode(strip.seen, begin, end), truth)
        quiet = role is Role.NO_TARGET
        style = f"{_STYLES[kind]}{' dim' if quiet else ''}".strip()
        if quiet:
            self._note("not predicted", Text("text", "dim") if self._colour else Text("«text»"))
        elif role is Role.NEXT and kind == _TEXT:
            self._note("predicted from all before it", Text("text"))
        if kind == _SENTINEL:
            self._note("stands for a left-out span", Text(truth.strip(), style))
        return Text(f"«{truth}»" if quiet and not self._colour else truth, style)

    def _predicted(self, role: Role, seen: str, truth: str) -> Text:
        """What is seen and, beside it, what is to be named there; the white space before it stays before it."""
        before = truth[: len(truth) - len(truth.lstrip())] if truth.strip() else ""
        seen, truth = _visible(seen), _visible(truth)
        if role is Role.KEPT:
            told = Text(truth, f"{_TRUTH} underline") if self._colour else Text(f"{{={truth}}}")
            self._note("left as it is, and predicted", Text("word", f"{_TRUTH} underline") if self._colour else Text("{=word}"))
        else:
            meaning = "hidden, and what was there" if role is Role.HIDDEN else "replaced, and what was there"
            style = _MASK if role is Role.HIDDEN else _WRONG
            told = self._pair(seen, truth, style)
            self._note(meaning, self._pair("mask" if role is Role.HIDDEN else "other", "word", style))
        return Text(before).append_text(told)

    def _pair(self, seen: str, truth: str, style: str) -> Text:
        if self._colour:
            return Text(seen, style).append("→", "dim not bold not strike").append(truth, f"not strike {_TRUTH}")
        return Text(f"{{{seen}→{truth}}}")

    def _note(self, meaning: str, mark: Text) -> None:
        self._used.setdefault(meaning, mark)

    def _decode(self, ids: np.ndarray, begin: int, end: int) -> str:
        """The text of ``ids[begin:end]`` as it is spelled behind what comes before."""
        context = ids[max(0, begin - _CONTEXT) : begin].tolist()
        before = self.tokenizer.decode(context, skip_special_tokens=False)
        whole = self.tokenizer.decode(context + ids[begin:end].tolist(), skip_special_tokens=False)
        alone = (
            whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(ids[begin:end].tolist(), skip_special_tokens=False)
        )
        return _safe(alone)


def _size(strip: Strip) -> str:
    """How much of its row a strip takes, and how much of it is predicted."""
    targets = sum(role not in (Role.READ, Role.NO_TARGET) for role in strip.roles)
    return f"{strip.title} {strip.read:,} of {strip.slots:,} slots".strip() + (f", {targets:,} predicted" if targets else "")


def _safe(text: str) -> str:
    return text.translate(_CONTROLS)


def _visible(text: str) -> str:
    """A word with its line ends and tabs as signs; nothing but white space is made of signs."""
    return text.strip().translate(_VISIBLE) if text.strip() else text.translate(_VISIBLE).replace(" ", "·")
