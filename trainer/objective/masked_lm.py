"""Masked language modelling: BERT's 15 % of the tokens, of which 80 % are hidden, 10 % replaced and 10 % left (Devlin et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.objective.causal_lm import perplexity
from trainer.schema import setting
from trainer.types import Batch, Context, LossTerms, Needs, Outputs, Samples, Scores, Term, Window

if TYPE_CHECKING:
    import numpy as np


@dataclass
class MaskedLM:
    """Predicts hidden tokens from both sides. What is hidden depends on the seed, the sample and its epoch only."""

    task: ClassVar[str] = "masked_lm"

    probability: float = setting(
        0.15, "share of tokens that are predicted", above=0, below=1, aliases=("mlm_probability", "mask_prob", "masking_ratio")
    )
    masked: float = setting(0.8, "share of the predicted tokens that are replaced by the mask token", minimum=0, maximum=1)
    random: float = setting(0.1, "share of the predicted tokens that are replaced by a random token; the rest stays", minimum=0, maximum=1)
    whole_word: bool = setting(False, "predict all tokens of a word or none", aliases=("whole_word_mask", "wwm"))

    def problems(self) -> list[str]:
        """Contradictions inside this objective, one sentence each."""
        if self.masked + self.random > 1:
            return [f"objective.masked={self.masked} and objective.random={self.random} are shares of one whole and exceed it: lower one."]
        return []

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """Documents, and a mask token."""
        return Needs({"text": Window(sequence_length, sequence_length)}, special_tokens=("mask",))

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Hides tokens of rows (B, L).

        Returns:
            inputs ``input_ids`` and ``position_ids`` (B, L), ``lengths`` (B,); places and labels (N,) of the tokens to predict.
        """
        import numpy as np
        import torch

        assert context.vocabulary.mask is not None, "the model gate has asked for a mask token"
        rows = samples.rows["text"]
        tokens, (size, width) = rows.tokens, rows.tokens.shape
        # Three numbers for each slot, slot by slot, so that what a slot gets does not depend on how wide the row is padded.
        drawn = np.stack([_noise(context, samples, row, 3 * width) for row in range(size)]).reshape(size, width, 3)
        chooses, how, which = np.moveaxis(drawn, 2, 0)
        if self.whole_word:
            begins = context.word_starts[tokens] | rows.starts
            words = np.cumsum(begins, axis=1) - begins[:, :1]  # a row may begin inside a word
            chooses = np.take_along_axis(chooses, words, axis=1)
        may_hide = rows.real & (samples.ids >= 0)[:, None] & ~np.isin(tokens, context.vocabulary.special)
        chosen = may_hide & (chooses < self.probability)
        anything = (which * context.vocabulary.size).astype(np.int64)
        seen = np.where(chosen & (how < self.masked + self.random), anything, tokens)
        seen = np.where(chosen & (how < self.masked), context.vocabulary.mask, seen)
        places = np.flatnonzero(chosen)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(seen),
                "position_ids": torch.from_numpy(rows.positions),
                "lengths": torch.from_numpy(rows.filled),
            },
            labels=torch.from_numpy(tokens.reshape(-1)[places]),
            counts={"targets": places.size},
            places=torch.from_numpy(places),
        )

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """The summed negative log-likelihood of the hidden tokens; in evaluation also how many were guessed right."""
        assert scores.nll is not None
        terms = {"nll": Term(scores.nll.sum(), "targets")}
        return terms if scores.hits is None else terms | {"hits": Term(scores.hits.sum(), "targets", weight=0.0)}

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """``loss`` in nats per hidden token, its ``perplexity``, and the share of hidden tokens that were guessed right."""
        return {"loss": means["nll"], "perplexity": perplexity(means["nll"]), "masked_accuracy": means["hits"]}


def _noise(context: Context, samples: Samples, row: int, count: int) -> np.ndarray:
    from trainer.objective.noise import uniform

    return uniform(context.seed, int(samples.epochs[row]), int(samples.ids[row]), count)
