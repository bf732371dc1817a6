"""The seams: what a strategy, an engine, an objective and a callback must offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from trainer.data.fingerprint import StatIndex
    from trainer.data.sources import Skipped
    from trainer.distributed.degrees import Degrees
    from trainer.types import (
        Batch,
        Context,
        Draws,
        Evaluation,
        LossTerms,
        Needs,
        Outputs,
        Record,
        Samples,
        Scores,
        StepPlan,
        StepRecord,
        StepStats,
    )


class Weights(Protocol):
    """Where a model's first values come from, tensor by tensor, so that nobody needs the whole model.

    Attributes:
        new: names of the parameters that pretrained folders do not hold, because the task is new to them.
    """

    new: list[str]

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """The fp32 CPU tensor, or its slice ``index``, of the parameter or buffer with this checkpoint name."""
        ...


class Order(Protocol):
    """In which order samples are seen: a pure function of its arguments, the same on every machine and for every layout."""

    num_samples: int

    def at(self, positions: np.ndarray) -> Draws:
        """The samples at ascending positions (n,) of the stream, counted from 0; every position costs the same."""
        ...


class Source(Protocol):
    """Where records come from."""

    @property
    def root(self) -> str:
        """The place in words, for messages and to name its index."""
        ...

    def digest(self, index: StatIndex) -> str:
        """A hash of everything that ``records`` depends on; ``index`` remembers files that have not changed."""
        ...

    def num_bytes(self) -> int:
        """About how much there is to read, for the progress bar."""
        ...

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Yields all records in one fixed order; tells ``skipped`` of those that cannot be used."""
        ...


class Objective(Protocol):
    """What is learned. A loss is a sum over samples; see the contract Gradient in docs/contracts.md.

    Attributes:
        task: which model and head it trains: ``causal_lm``, ``masked_lm``, ``seq2seq`` or ``classification`` (trainer.model.families).

    It may also have ``writes = True``, to be judged by what the model writes for held-out sources; ``requires``, the packages that it needs
    by our extra that brings them; and ``problems()``, contradictions among its settings. One that is given logits, or writes, sets ``ids``
    in its batches.
    """

    task: str

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """What it reads of a corpus, given ``data.sequence_length`` and ``data.target_length``; free of torch."""
        ...

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Turns samples into a micro-batch with labels aligned to the outputs, -100 where there is no target; ``targets`` is among its counts."""
        ...

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """Named sums over the micro-batch, each with the count that divides it; terms of weight 0 are only reported."""
        ...

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """What to report of the held-out split, from each term's mean over it and the model's outputs; ``loss`` is among them."""
        ...


class Engine(Protocol):
    """One model being trained under one strategy. All methods are collective: every rank calls them in the same order."""

    data_rank: int
    data_size: int
    device: torch.device

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; the result is on every rank."""
        ...

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the gradient of ``step``: each term divided by its own ``counts`` (global, on the device).

        Returns:
            The terms summed over all ranks, on every rank.
        """
        ...

    def optimizer_step(self, plan: StepPlan) -> StepStats:
        """Clips and applies the accumulated gradient unless its norm is not finite; clears it either way."""
        ...

    def bubble(self) -> float | None:
        """The share of the steps since the last call, 32 at most, in which ranks of a pipeline waited for one another; None without a pipeline.

        Asked at log intervals only, where the device has been read.
        """
        ...

    def score(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """This rank's terms of one micro-batch and what they were made of, without gradients and with dropout off."""
        ...

    def gather_over_data(self, values: Tensor) -> Tensor:
        """Puts the data ranks' ``values`` (n, ...) of one shape one after the other, (data_size * n, ...), on every rank."""
        ...

    def inference(self) -> AbstractContextManager[tuple[Any, dict[str, Any]]]:
        """Yields a model that transformers' ``generate`` accepts and the keyword arguments it needs there.

        Its numbers are of the type in which the engine keeps or gathers parameters: fp32 where every rank holds the masters.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """The live tensors by neutral name (``model.NAME``, ``optim.NAME.exp_avg`` ...): whole, DTensor, or trainer.distributed.pieces."""
        ...

    def load_state(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Lets ``read`` fill all or some of ``state()`` in place, then trains on from what it holds."""
        ...

    def dtypes(self) -> dict[str, str]:
        """The number type of each kind of tensor, read back from live ones."""
        ...

    def files(self) -> dict[str, dict[str, Any]]:
        """JSON derived from our config for a library underneath, by the name under which ``run.dir`` keeps it."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


@dataclass(frozen=True)
class EngineJob:
    """What a strategy builds its engine from.

    Attributes:
        skeleton: the model on meta (trainer.model.skeleton.Skeleton); the engine may shard and fill it in place.
        weights: its first values.
        objective: what is learned.
        make_optimizer: builds the optimizer over (checkpoint name, parameter) pairs, tied parameters once.
        precision: the policy (trainer.precision.config.Precision).
        mesh: axes as in trainer.distributed.degrees.
        device: this rank's.
        seed: ``train.seed``, for dropout.
        micro_batch: most samples per forward on one rank.
        accumulation: most micro-batches per step on one rank.
        max_norm: to which gradients are clipped; None: they are not.
        recompute: which blocks are computed again for their backward (trainer.parallel.activation.Recompute); None: none.
        chunk: so many slots of a micro-batch have logits at a time; None: all.
        compiles: whether blocks run as compiled code (trainer.parallel.compiling).
    """

    skeleton: Any
    weights: Weights
    objective: Objective
    make_optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
    precision: Any
    mesh: DeviceMesh
    device: torch.device
    seed: int
    micro_batch: int
    accumulation: int
    max_norm: float | None
    recompute: Any = None
    chunk: int | None = None
    compiles: bool = False


class Strategy(Protocol):
    """A config dataclass that knows its degrees and builds its engine.

    It may also have, asked for where they are there: ``problems(skeleton, precision, launch, device)``, what cannot work with this model on
    this rank's device, a sentence each; ``batch_problems(world_size, global_batch, micro_batch)``, what cannot work with steps of this size, a
    sentence each; ``whole_model_problem(skeleton, world_size)``, why ranks cannot have the whole model to write with, None where they can; and
    ``plan(skeleton, world_size)``, the stages of a pipeline (trainer.parallel.stages.Stages), None where there is none.
    """

    name: str

    def degrees(self, world_size: int) -> Degrees:
        """The size of each mesh axis; raises ``Refused`` when they do not fit the world."""
        ...

    def check(self, world_size: int | None, precision: str, objective: str | None, family: str | None) -> list[str]:
        """What cannot work with these, one sentence each; None stands for what is not known yet. Torch-free: the static gate."""
        ...

    def build(self, job: EngineJob) -> Engine:
        """Builds the engine on every rank."""
        ...


class Callback(Protocol):
    """Watches a run. Callbacks are called on rank 0 only, in any order, and never change training."""

    def on_log(self, records: list[StepRecord]) -> None:
        """The steps since the last log interval."""
        ...

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """One pass over the held-out split."""
        ...

    def on_save(self, step: int, folder: str) -> None:
        """A checkpoint has been committed."""
        ...

    def on_end(self) -> None:
        """Training is over, for whatever reason."""
        ...


class Saver(Protocol):
    """Keeps checkpoints (trainer.session.saving).

    All but ``hold`` is called by every rank, after the same steps, and may raise StorageFailed on all of them.
    """

    def save(self, step: int, tokens_seen: int) -> None:
        """A checkpoint is due; it may be completed later."""
        ...

    def look(self) -> None:
        """The device has just been read: a good moment to hear of one that is being written."""
        ...

    def hold(self) -> None:
        """An update is about to be made."""
        ...

    def finish(self) -> None:
        """Training is over: returns when all that was to be saved is there."""
        ...
