"""Next-token prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trainer.types import IGNORE, Batch, Context, LossTerms, Needs, Outputs, Samples, Scores, Term, Window


@dataclass
class CausalLM:
    """Predicts each token of a document from those before it; a document's first token is no target."""

    task: ClassVar[str] = "causal_lm"

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """Documents, and one token more than a row has, so that labels can be aligned without a loss shift."""
        return Needs({"text": Window(sequence_length, sequence_length + 1)})

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Turns rows of L + 1 tokens into one micro-batch.

        Returns:
            inputs ``input_ids`` and ``position_ids`` (B, L); labels (B, L) aligned with the outputs.
        """
        import numpy as np
        import torch

        rows = samples.rows["text"]
        not_a_target = rows.starts[:, 1:] | ~rows.real[:, 1:]
        not_a_target |= (samples.ids < 0)[:, None]
        labels = np.where(not_a_target, IGNORE, rows.tokens[:, 1:])
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(np.ascontiguousarray(rows.tokens[:, :-1])),
                "position_ids": torch.from_numpy(np.ascontiguousarray(rows.positions[:, :-1])),
            },
            labels=torch.from_numpy(labels),
            counts={"targets": int(labels.size - not_a_target.sum())},
        )

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """The summed negative log-likelihood of the targets; ``scores.nll`` is 0 where there is none."""
        assert scores.nll is not None
        return {"nll": Term(scores.nll.sum(), "targets")}

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """The mean negative log-likelihood in nats as ``loss``, and e to its power as ``perplexity``."""
        return {"loss": means["nll"], "perplexity": perplexity(means["nll"])}


def perplexity(nll: float) -> float:
    """The exponential of a mean negative log-likelihood in nats; infinite where it is beyond any number."""
    return math.exp(nll) if nll < 700 else math.inf
