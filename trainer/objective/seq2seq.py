"""Sequence to sequence: a source text is read, a target text is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.objective.causal_lm import perplexity
from trainer.types import IGNORE, Batch, Context, LossTerms, Needs, Outputs, Samples, Scores, Term, Window

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Seq2Seq:
    """Predicts each token of the target from those before it and the source."""

    task: ClassVar[str] = "seq2seq"
    writes: ClassVar[bool] = True
    requires: ClassVar[dict[str, str]] = {"torchmetrics": "metrics"}

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """Pairs of texts, one pair per row."""
        target = target_length or sequence_length
        return Needs({"source": Window(sequence_length, sequence_length), "target": Window(target, target)}, packs=False)

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Turns pairs into one micro-batch.

        Returns:
            inputs ``input_ids`` (B, S), ``lengths`` (B,), ``decoder_input_ids`` (B, T); labels (B, T) aligned with the outputs.
        """
        import numpy as np
        import torch

        source, target = samples.rows["source"], samples.rows["target"]
        labels = np.where(target.real & (samples.ids >= 0)[:, None], target.tokens, IGNORE)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(source.tokens),
                "lengths": torch.from_numpy(source.filled),
                "decoder_input_ids": torch.from_numpy(shifted(target.tokens, context)),
            },
            labels=torch.from_numpy(labels),
            counts={"targets": int((labels != IGNORE).sum())},
            ids=torch.from_numpy(samples.ids),
        )

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """The summed negative log-likelihood of the target tokens."""
        assert scores.nll is not None
        return {"nll": Term(scores.nll.sum(), "targets")}

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """``loss`` in nats per target token, its ``perplexity``, and how the written targets compare with the true ones.

        ``rouge_l`` is the mean F-measure of the longest common subsequence of words (Lin, 2004), ``exact_match`` the share of equal texts.
        The true targets are those of the corpus: what is longer than ``data.target_length`` is cut in both.
        """
        told = {"loss": means["nll"], "perplexity": perplexity(means["nll"])}
        if not outputs.texts:
            return told
        same = sum(text.strip() == reference.strip() for text, reference in zip(outputs.texts, outputs.references, strict=True))
        return told | {"rouge_l": rouge_l(outputs.texts, outputs.references), "exact_match": same / len(outputs.texts)}


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """The mean F-measure of the longest common subsequence of words, lower-cased."""
    from torchmetrics.functional.text import rouge_score

    # Lists: of a tuple it would take each reference for many references of one character.
    judged = rouge_score(list(texts), list(references), tokenizer=_words, normalizer=str.lower, rouge_keys="rougeL")
    return float(judged["rougeL_fmeasure"])


def _words(text: str) -> list[str]:
    """Runs of letters and digits of any script; torchmetrics' own tokenizer, else the same, knows only a to z."""
    return re.findall(r"[^\W_]+", text)


def shifted(tokens: np.ndarray, context: Context) -> np.ndarray:
    """What a decoder has written before each of ``tokens`` (B, T): its first id, then the tokens but the last."""
    import numpy as np

    assert context.decoder_start is not None, "a model that writes targets has an id to begin with"
    return np.concatenate([np.full_like(tokens[:, :1], context.decoder_start), tokens[:, :-1]], axis=1)
