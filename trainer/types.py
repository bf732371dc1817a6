"""The values that cross the seams: frozen, and free of torch at import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


IGNORE = -100
"""The label of a slot that is no target."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as models need to know it; the tokenizer owns these numbers.

    Attributes:
        size: number of ids; every id is below it.
        bos, eos, pad: special ids; None where the tokenizer has none.
        sha256: hash of ``tokenizer.json``.
    """

    size: int
    bos: int | None
    eos: int | None
    pad: int | None
    sha256: str

    def model_fields(self) -> dict[str, int | None]:
        """The fields of a transformers config that belong to the tokenizer."""
        return {"vocab_size": self.size, "bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}


@dataclass(frozen=True)
class Rows:
    """Packed rows as the data layer hands them to an objective's ``collate``. B rows of L slots.

    Attributes:
        tokens: int64 (B, L + 1); one token more than the row, so that labels can be aligned without a loss shift.
        positions: int64 (B, L + 1); distance from the start of the document or of the row, whichever is nearer.
            0 in the last column means that the extra token begins a document.
        starts: bool (B, L + 1); True where a document begins.
        filled: int64 (B,); how many of the L + 1 tokens are real (a corpus's last row is padded).
        sample_ids: int64 (B,); the rows' places in the corpus; -1 for a copy that only fills up a short rank.
    """

    tokens: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    filled: np.ndarray
    sample_ids: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: keyword arguments of the model's forward, each (B, ...).
        labels: int64, aligned with the outputs; -100 where there is no target.
        counts: how many samples, targets ... of each count key this micro-batch holds.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    counts: dict[str, int]


@dataclass(frozen=True)
class Scores:
    """What an objective sees of the model: per-token negative log-likelihood, never full logits unless asked."""

    nll: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One summand of a loss: ``weight * sum / (global count of count_key)``.

    Attributes:
        sum: scalar tensor, a sum over samples; never a mean.
        count_key: which of the batch's counts divides it.
        weight: its share in the loss.
    """

    sum: Tensor
    count_key: str
    weight: float = 1.0


LossTerms = dict[str, Term]


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step shall do: ``lr_scale`` multiplies each group's own learning rate."""

    step: int
    lr_scale: float
    max_norm: float | None


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did; tensors on the device, so that reading them is the caller's choice.

    Attributes:
        grad_norm: scalar, the global 2-norm before clipping.
        applied: scalar bool; False where the norm was not finite and nothing was changed.
        rank_losses: (data_size,), the sum of each data rank's own loss terms: tells on which rank a loss was not finite.
    """

    grad_norm: Tensor
    applied: Tensor
    rank_losses: Tensor

    @property
    def bad_ranks(self) -> Tensor:
        """(data_size,) bool: whose own loss was not finite."""
        return ~self.rank_losses.isfinite()


@dataclass(frozen=True)
class StepRecord:
    """One training step as callbacks and ``metrics.jsonl`` see it, read from the device at a log interval.

    Attributes:
        step: 1-based.
        loss: the objective's value over the global batch: the mean over its targets.
        grad_norm: global 2-norm before clipping.
        lr: peak learning rate times the schedule.
        num_targets: tokens of the global batch that are predicted.
        samples: hash of the step's sample ids (trainer.data.order).
        tokens_per_second: targets per wall-clock second since the last log interval.
        peak_memory_bytes: most memory this rank has held: allocated on CUDA, resident on CPU.
        applied: False where the update was not finite and was left out.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    num_targets: int
    samples: str
    tokens_per_second: float
    peak_memory_bytes: int
    applied: bool


@dataclass(frozen=True)
class Evaluation:
    """The held-out split at one step: ``metrics`` by name (loss, perplexity ...), over ``num_targets`` tokens."""

    step: int
    metrics: dict[str, float]
    num_targets: int


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps beside tensors; JSON.

    Attributes:
        step: optimizer steps done.
        identity: what must not differ on resume, by config key.
        tokens_seen: targets trained on so far.
        metrics_bytes: length of ``metrics.jsonl`` when the checkpoint was made.
    """

    step: int
    identity: dict[str, Any]
    tokens_seen: int
    metrics_bytes: int
