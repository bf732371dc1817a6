"""Next-token prediction over packed documents."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.types import IGNORE, Batch, LossTerms, Rows, Scores, Term


@dataclass
class CausalLM:
    """Predicts each token of a document from those before it; a document's first token is no target."""

    def collate(self, rows: Rows) -> Batch:
        """Turns packed rows into one micro-batch.

        Args:
            rows: (B, L + 1) tokens.

        Returns:
            inputs ``input_ids`` and ``position_ids`` (B, L); labels (B, L) aligned with the outputs.
        """
        import numpy as np
        import torch

        length = rows.tokens.shape[1] - 1
        not_a_target = rows.starts[:, 1:] | (np.arange(1, length + 1) >= rows.filled[:, None])
        not_a_target |= (rows.sample_ids < 0)[:, None]
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
        return {"nll": Term(scores.nll.sum(), "targets")}

    def metrics(self, means: dict[str, float]) -> dict[str, float]:
        """The mean negative log-likelihood in nats as ``loss``, and e to its power as ``perplexity``."""
        import math

        nll = means["nll"]
        return {"loss": nll, "perplexity": math.exp(nll) if nll < 700 else math.inf}
