"""``isotrain prepare``: makes the corpus ready and says what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.data.build import TRAIN, VALIDATION
from trainer.data.prepare import Corpus, prepare
from trainer.errors import DONE
from trainer.model.config import Pretrained

if TYPE_CHECKING:
    from trainer.config import Config


def run(config: Config) -> int:
    """Prepares ``config.data`` and prints a summary; returns the exit code.

    Raises:
        Refused: see ``trainer.data.prepare.prepare``.
    """
    source = None
    if isinstance(config.model, Pretrained):  # transformers is needed for nothing else here
        from trainer.model.skeleton import pretrained_folder

        source = pretrained_folder(config.model)
    corpus = prepare(config.data, str(source) if source else None, config.run.quiet)
    for name, value in summary(corpus).items():
        print(f"{name:<12}{value}")
    return DONE


def summary(corpus: Corpus) -> dict[str, str]:
    """What a person wants to know of a prepared corpus, in the order of reading."""
    train, held_out = corpus.counts[TRAIN], corpus.counts[VALIDATION]
    bytes_per_token = (train["bytes"] + held_out["bytes"]) / (train["tokens"] + held_out["tokens"])
    return {
        "documents": f"{train['documents']:,} to train on, {held_out['documents']:,} held out, {corpus.num_bad:,} unreadable",
        "tokens": f"{train['tokens']:,} to train on, {held_out['tokens']:,} held out, {bytes_per_token:.2f} bytes per token",
        "rows": f"{len(corpus.rows(TRAIN)):,} to train on, {len(corpus.rows(VALIDATION)):,} held out, of {corpus.sequence_length:,} tokens",
        "vocabulary": f"{corpus.vocabulary.size:,} entries in {corpus.tokenizer_folder}",
        "folder": str(corpus.folder),
    }
