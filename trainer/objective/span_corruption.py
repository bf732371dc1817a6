"""T5's denoising: spans of a text are left out, each marked by a sentinel, and written one after the other (Raffel et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.objective.causal_lm import perplexity
from trainer.schema import setting
from trainer.types import IGNORE, Batch, Context, LossTerms, Needs, Outputs, Samples, Scores, Term, Window

if TYPE_CHECKING:
    import numpy as np


@dataclass
class SpanCorruption:
    """Predicts left-out spans. Which ones depends on the seed, the sample and its epoch only; a row is one text to the model, as in T5."""

    task: ClassVar[str] = "seq2seq"

    noise_density: float = setting(0.15, "share of tokens that are left out", above=0, below=1, aliases=("mlm_probability", "mask_prob"))
    mean_span: float = setting(3.0, "mean tokens of a left-out span", minimum=1, aliases=("mean_noise_span_length", "mean_span_length"))

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """Documents, in rows of just so many tokens that what is left of them, with sentinels and end, is ``sequence_length``."""
        raw = self.raw_length(sequence_length)
        return Needs(
            {"text": Window(raw, raw)}, special_tokens=("sentinels",), num_sentinels=self._noise(raw)[1], target_length=self.lengths(raw)[1]
        )

    def raw_length(self, sequence_length: int) -> int:
        """The most tokens whose corrupted form fits into ``sequence_length``: 568 for 512 at the defaults."""
        raw = max(2, sequence_length - 1)  # always fits: there are no more sentinels than tokens left out, and one end
        while self.lengths(raw + 1)[0] <= sequence_length:
            raw += 1
        return raw

    def lengths(self, raw: int) -> tuple[int, int]:
        """Tokens of input and target that ``raw`` tokens become, sentinels and end included."""
        noise, spans = self._noise(raw)
        return raw - noise + spans + 1, noise + spans + 1

    def _noise(self, raw: int) -> tuple[int, int]:
        """How many tokens are left out, in how many spans."""
        noise = min(max(round(raw * self.noise_density), 1), raw - 1)
        return noise, min(max(round(noise / self.mean_span), 1), raw - noise)

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Corrupts rows of raw tokens.

        Returns:
            inputs ``input_ids`` (B, S), ``lengths`` (B,), ``decoder_input_ids`` (B, T); labels (B, T) aligned with the outputs.
        """
        import numpy as np
        import torch

        from trainer.objective.seq2seq import shifted

        rows, fill = samples.rows["text"], context.vocabulary.fill
        widths = self.lengths(rows.tokens.shape[1])
        inputs, targets = (np.full((len(samples.ids), width), fill, np.int64) for width in widths)
        lengths, targeted = np.ones_like(samples.ids), np.zeros_like(samples.ids)
        for row, (id, filled) in enumerate(zip(samples.ids, rows.filled, strict=True)):
            seen, target = self._corrupt(rows.tokens[row, :filled], context, int(samples.epochs[row]), int(id))
            inputs[row, : seen.size], targets[row, : target.size] = seen, target
            lengths[row], targeted[row] = seen.size, target.size if id >= 0 else 0
        labels = np.where(np.arange(widths[1]) < targeted[:, None], targets, IGNORE)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(inputs),
                "lengths": torch.from_numpy(lengths),
                "decoder_input_ids": torch.from_numpy(shifted(targets, context)),
            },
            labels=torch.from_numpy(labels),
            counts={"targets": int(targeted.sum())},
        )

    def _corrupt(self, tokens: np.ndarray, context: Context, epoch: int, id: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and target of one row; a row of one token has nothing to leave out and no target."""
        import numpy as np

        from trainer.objective.noise import uniform

        end = [] if context.vocabulary.eos is None else [context.vocabulary.eos]
        if tokens.size < 2:
            return np.concatenate([tokens, end]).astype(np.int64), np.empty(0, np.int64)
        noise, spans = self._noise(tokens.size)
        drawn = uniform(context.seed, epoch, id, tokens.size)
        kept = _parts(tokens.size - noise, spans, drawn[: tokens.size - noise - 1])
        left_out = _parts(noise, spans, drawn[tokens.size - noise - 1 :][: noise - 1])
        pieces = np.split(tokens, np.cumsum(np.stack([kept, left_out], axis=1).reshape(-1))[:-1])  # kept, left out, kept ...
        sentinels = [np.array([sentinel]) for sentinel in context.vocabulary.sentinels[:spans]]
        assert len(sentinels) == spans, "the gate has compared spans with sentinels"
        seen = [part for pair in zip(pieces[::2], sentinels, strict=True) for part in pair]
        target = [part for pair in zip(sentinels, pieces[1::2], strict=True) for part in pair]
        return tuple(np.concatenate([*parts, end]).astype(np.int64) for parts in (seen, target))  # type: ignore[return-value]

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """The summed negative log-likelihood of the targets, sentinels and end included."""
        assert scores.nll is not None
        return {"nll": Term(scores.nll.sum(), "targets")}

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """``loss`` in nats per target token, and its ``perplexity``."""
        return {"loss": means["nll"], "perplexity": perplexity(means["nll"])}


def _parts(total: int, count: int, drawn: np.ndarray) -> np.ndarray:
    """Divides ``total`` into ``count`` parts of at least 1, each division equally likely: cuts at the smallest of ``drawn`` (total - 1,)."""
    import numpy as np

    cuts = np.sort(np.argsort(drawn, kind="stable")[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
