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
        bos, eos, pad: ids that begin and end a document and that fill up; None where the tokenizer has none. A tokenizer that calls
            the first two cls and sep means the same.
        sha256: hash of ``tokenizer.json``.
        mask: id that hides a token; None where the tokenizer has none.
        special: all ids that are no text, ascending.
        sentinels: ids that stand for left-out spans, the first span's first.
    """

    size: int
    bos: int | None
    eos: int | None
    pad: int | None
    sha256: str
    mask: int | None = None
    special: tuple[int, ...] = ()
    sentinels: tuple[int, ...] = ()

    @property
    def fill(self) -> int:
        """The id that fills up short rows; slots with it are never seen by attention or loss."""
        return next(id for id in (self.pad, self.eos, 0) if id is not None)

    def model_fields(self) -> dict[str, int | None]:
        """The fields of a transformers config that belong to the tokenizer."""
        return {"vocab_size": self.size, "bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}


@dataclass(frozen=True)
class Window:
    """How a field's tokens become rows.

    Attributes:
        stride: slots of a row; packed, the next row begins so many tokens later.
        width: tokens that a row takes: ``stride``, or more where labels need a look ahead.
    """

    stride: int
    width: int


@dataclass(frozen=True)
class Needs:
    """What an objective asks of a corpus.

    Attributes:
        fields: the texts of a record that it reads, such as ``text`` or ``source`` and ``target``, and how each becomes rows.
        packs: whether documents may follow each other in one row.
        label: what kind of label a record has: ``class``, ``classes`` (any number of them), ``number``; None: none.
        special_tokens: what a tokenizer trained on the corpus gets beside bos, eos and pad: ``mask``, ``sentinels``.
        num_sentinels: how many of those it uses at most.
        target_length: tokens of the longest target that it makes itself; None: it makes none.
    """

    fields: dict[str, Window]
    packs: bool = True
    label: str | None = None
    special_tokens: tuple[str, ...] = ()
    num_sentinels: int = 0
    target_length: int | None = None


@dataclass(frozen=True)
class Record:
    """One record as a source reads it.

    Attributes:
        name: file and line, for messages.
        texts: by field, as in ``Needs.fields``.
        label: a class name, a list of them, a number, or None, as in ``Needs.label``.
        group: records of one group are held out together; None: the first text decides.
        split: ``train`` or ``validation`` where the user says it; None: the hash of group or text decides.
    """

    name: str
    texts: dict[str, str]
    label: str | list[str] | float | None = None
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Draws:
    """Samples as an order draws them.

    Attributes:
        ids: int64 (...), places in the corpus.
        epochs: int64 (...), how often the sample has been drawn before.
    """

    ids: np.ndarray
    epochs: np.ndarray


@dataclass(frozen=True)
class Rows:
    """One field of some samples: B rows of W tokens.

    Attributes:
        tokens: int64 (B, W).
        positions: int64 (B, W); distance from the start of the document or of the row, whichever is nearer.
            0 in a later column means that a document begins there.
        starts: bool (B, W); True where a document begins.
        filled: int64 (B,); how many of the W tokens are real; the rest is fill.
    """

    tokens: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    filled: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """Bool (B, W): which tokens are real."""
        import numpy as np

        return np.arange(self.tokens.shape[1]) < self.filled[:, None]

    def __getitem__(self, which: slice) -> Rows:
        return Rows(self.tokens[which], self.positions[which], self.starts[which], self.filled[which])


@dataclass(frozen=True)
class Samples:
    """Some samples as the data layer hands them to an objective's ``collate``.

    Attributes:
        ids: int64 (B,), the samples' places in the corpus; -1 for a copy that only fills up a short rank and must have no targets.
        epochs: int64 (B,), how often each has been drawn before.
        rows: by field, as in ``Needs.fields``.
        labels: (B,) class numbers (int64) or numbers (float32), (B, C) classes as 0 and 1 (float32), or None.
    """

    ids: np.ndarray
    epochs: np.ndarray
    rows: dict[str, Rows]
    labels: np.ndarray | None = None

    def __getitem__(self, which: slice) -> Samples:
        rows = {name: rows[which] for name, rows in self.rows.items()}
        return Samples(self.ids[which], self.epochs[which], rows, None if self.labels is None else self.labels[which])


@dataclass(frozen=True)
class Context:
    """What an objective may know when it collates, beside the samples.

    Attributes:
        vocabulary: the corpus' tokenizer.
        seed: ``train.seed``; what is drawn for a sample depends on it, the sample's id and its epoch only.
        decoder_start: id with which a decoder begins to write; None for models without one.
        word_starts: bool (vocabulary size,), True for ids that begin a word.
    """

    vocabulary: Vocabulary
    seed: int
    decoder_start: int | None
    word_starts: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: keyword arguments of the model's forward, each (B, ...). Instead of a mask, ``lengths`` (B,) may say how many slots of
            ``input_ids`` are real; ``position_ids`` say where packed documents begin. Either is left out where it says nothing
            (trainer.model.attention.drop_plain).
        labels: aligned with the outputs; -100 where there is no target.
        counts: how many samples, targets ... of each count key this micro-batch holds.
        places: int64 (N,), the only flat slots (of B * L) at which the head is to be asked, so that ``labels`` are (N,); None: at all.
        ids: int64 (B,), the samples' places in the corpus; -1 for copies.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    counts: dict[str, int]
    places: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """What an objective sees of the model.

    Attributes:
        nll: negative log-likelihood of each label, 0 where there is none; None where the objective asked for logits.
        hits: bool, whether the label is the likeliest; only in evaluation.
        logits: only where the objective asked for them.
    """

    nll: Tensor | None = None
    hits: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """What a model gave for the held-out samples, all ranks' together, each sample once.

    Attributes:
        logits: (n, ...) on the CPU, where the objective asked for logits.
        labels: (n, ...) of the same samples.
        texts: what it wrote for the first samples, where it writes.
        references: what should have been written.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    texts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


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
        slots_per_second: the same of all slots of the rows, padding and what has no label included.
        mfu: the model's arithmetic per second, attention to all pairs of slots included, as a share of the devices' peak
            (trainer.model.flops, trainer.callbacks.throughput); None where the peak is not known.
        mfu_causal: the same with half of the pairs under a causal mask.
        peak_memory_bytes: most memory this rank has held: allocated on CUDA, resident on CPU.
        applied: False where the update was not finite and was left out.
        seconds: of a step since the last log interval, on average: ``data``, that the loop waited for its batch; ``forward_backward`` and
            ``optimizer``, on the device.
        bubble: 1 - (work / elapsed) of the pipeline that rank 0 is in, since the last log interval or in its last 32 steps: ``work`` is what
            its ranks spend in their stages, on average, and ``elapsed`` what the longest of them spends between a schedule's beginning and
            end; None without a pipeline.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    num_targets: int
    samples: str
    tokens_per_second: float
    slots_per_second: float
    mfu: float | None
    mfu_causal: float | None
    peak_memory_bytes: int
    applied: bool
    seconds: dict[str, float]
    bubble: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The held-out samples at one step.

    Attributes:
        step: after which.
        metrics: by name: loss, perplexity ...; those of one source of a mix as SOURCE/NAME.
        num_targets: over how many tokens (or samples, where a whole text has one target).
        examples: for a model that writes: what it wrote and what should have been written, for the first samples.
        sample: for a decoder that is asked to (sample.every_evaluation): the prompt, and the prompt with what it wrote after it.
    """

    step: int
    metrics: dict[str, float]
    num_targets: int
    examples: tuple[tuple[str, str], ...] = ()
    sample: tuple[str, str] | None = None


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps beside tensors; JSON.

    Attributes:
        step: optimizer steps done.
        identity: what must not differ on resume, by config key.
        tokens_seen: targets trained on so far.
        metrics_bytes: length of ``metrics.jsonl`` when the checkpoint was made.
        stream: where each data rank was in a set that is read while training, by data rank; None: the corpus was prepared.
    """

    step: int
    identity: dict[str, Any]
    tokens_seen: int
    metrics_bytes: int
    stream: list[Any] | None = None
