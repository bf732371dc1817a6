"""``isotrain prepare``: makes the corpus ready, says what is in it, and shows samples of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trainer.callbacks.summary import share_texts
from trainer.data.held_out import TRAIN, VALIDATION
from trainer.data.prepare import Corpus, prepare
from trainer.data.streams import open_labels, stem
from trainer.errors import DONE

if TYPE_CHECKING:
    from trainer.config import Config

_NUM_NAMED = 8
"""Classes that are named, the commonest first."""


def run(config: Config, num_shown: int = 0) -> int:
    """Prepares ``config.data`` and prints a summary; returns the exit code.

    Args:
        config: checked.
        num_shown: how many samples to show after it, as the model will get them (trainer.commands.show).

    Raises:
        Refused: see ``trainer.data.prepare.prepare``; with samples, also what ``trainer.assembly.open_job`` refuses.
    """
    if not num_shown:
        _print(summary(_prepared(config), config.data.shares()))
        return DONE
    from trainer.assembly import open_job
    from trainer.commands.show import show
    from trainer.distributed.launch import Launch

    # No model is filled: any machine will do.
    anywhere = replace(config, run=replace(config.run, device="cpu"), train=replace(config.train, attention=None, compile=False))
    job = open_job(anywhere, Launch())
    if job.corpus.counts[TRAIN]["documents"]:  # none of a set that is read while training
        _print(summary(job.corpus, config.data.shares()))
    show(job, num_shown)
    return DONE


def _prepared(config: Config) -> Corpus:
    first = next(iter(config.model.fetch().values()), None)
    needs = config.objective.needs(config.data.sequence_length, config.data.target_length)
    return prepare(config.data, needs, str(first) if first else None, config.run.quiet)


def _print(facts: dict[str, str]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{width}}{value}")


def summary(corpus: Corpus, shares: dict[str, tuple[float, float]]) -> dict[str, str]:
    """What a person wants to know of a prepared corpus, in the order of reading.

    Args:
        corpus: prepared.
        shares: of the training stream that each part is, at its beginning and end (``Data.shares``).
    """
    train, held_out = corpus.counts[TRAIN], corpus.counts[VALIDATION]
    bytes_per_token = (train["bytes"] + held_out["bytes"]) / (train["tokens"] + held_out["tokens"])
    facts = {
        "documents" if corpus.packed else "records": f"{train['documents']:,} to train on, {held_out['documents']:,} held out",
        **(_parts(corpus, shares) if len(corpus.parts) > 1 else {}),
        "left out": left_out(corpus),
        "tokens": f"{train['tokens']:,} to train on, {held_out['tokens']:,} held out, {bytes_per_token:.2f} bytes per token",
        **({f"  {field}": _tokens_of(corpus, field) for field in corpus.needs.fields} if len(corpus.needs.fields) > 1 else {}),
        "rows": rows(corpus),
        "layout": _layout(corpus),
        "labels": _labels(corpus) if corpus.needs.label else "",
        "vocabulary": f"{corpus.vocabulary.size:,} entries in {corpus.tokenizer_folder}",
        "folder": str(corpus.folder),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _parts(corpus: Corpus, shares: dict[str, tuple[float, float]]) -> dict[str, str]:
    """What each source of a mix brings."""
    told, samples = share_texts(shares), corpus.samples(TRAIN).parts
    return {
        f"  {part}": f"{told[part]} of the samples; {splits[TRAIN]['documents']:,} to train on, {splits[VALIDATION]['documents']:,} held out, "
        f"{sum(splits[TRAIN]['tokens'].values()):,} tokens in {len(samples[part]):,} rows"
        for part, splits in corpus.parts.items()
    }


def _tokens_of(corpus: Corpus, field: str) -> str:
    train, held_out = (sum(part[split]["tokens"][field] for part in corpus.parts.values()) for split in (TRAIN, VALIDATION))
    return f"{train:,} to train on, {held_out:,} held out, mean {train / max(corpus.counts[TRAIN]['documents'], 1):.1f}"


def left_out(corpus: Corpus) -> str:
    """Which records are in no split, and why; empty if all are in one."""
    why = {f"{kind} (bad)": number for kind, number in corpus.bad_kinds.items()}
    why["of the held-out texts in training"] = corpus.num_leaked
    why["without a token"] = corpus.num_empty
    return ", ".join(f"{number:,} {kind}" for kind, number in why.items() if number)


def rows(corpus: Corpus) -> str:
    """How many rows of which length there are, and how many records are longer than theirs."""
    train, held_out = corpus.samples(TRAIN), corpus.samples(VALIDATION)
    several = len(corpus.needs.fields) > 1
    sizes = [f"{window.stride:,} {name + ' ' if several else ''}tokens" for name, window in corpus.needs.fields.items()]
    told = f"{len(train):,} to train on, {len(held_out):,} held out, of {'' if corpus.packed else 'up to '}{' and '.join(sizes)}"
    if number := train.num_too_long + held_out.num_too_long:
        told += f"; {number:,} longer ones {'left out' if corpus.too_long == 'skip' else 'cut'} (data.too_long={corpus.too_long})"
    return told


def _layout(corpus: Corpus) -> str:
    """How the training rows are filled."""
    samples = corpus.samples(TRAIN)
    if corpus.packed:
        used = min(1.0, corpus.counts[TRAIN]["tokens"] / (len(samples) * corpus.sequence_length))
        return f"packed, {100 * used:.2f} % of the slots used"
    longest = "longest field " if len(corpus.needs.fields) > 1 else ""
    return f"padded, {longest}mean {samples.lengths.mean():.1f} tokens, longest {samples.lengths.max():,}"


def _labels(corpus: Corpus) -> str:
    """How many classes and the commonest of them, or the range of the numbers."""
    assert corpus.needs.label is not None
    files = [corpus.folder / f"{stem(TRAIN, part)}.labels" for part in corpus.parts]
    values = [open_labels(file, corpus.needs.label, len(corpus.labels or ())) for file in files]
    if corpus.labels is None:
        numbers = np.concatenate(values)
        return f"numbers from {numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.3g}"
    size = len(corpus.labels)
    counts = sum((part.sum(axis=0) if part.ndim == 2 else np.bincount(part, minlength=size) for part in values), np.zeros(size))
    total = sum(len(part) for part in values)
    order = np.argsort(-counts, kind="stable")[:_NUM_NAMED]
    named = ", ".join(f"{corpus.labels[place]} {100 * counts[place] / total:.1f} %" for place in order)
    return f"{size:,} classes: {named}" + (", ..." if size > _NUM_NAMED else "")
