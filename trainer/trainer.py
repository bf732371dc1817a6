"""The training loop. It knows steps, batches and records; how a step is carried out is the engine's business."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.data.loader import deal
from trainer.data.order import samples_hash
from trainer.errors import TrainingFailed
from trainer.types import Batch, Evaluation, LossTerms, StepPlan, StepRecord, StepStats

if TYPE_CHECKING:
    from trainer.distributed.stop import StopRequest
    from trainer.protocols import Callback, Engine, Objective


class Loader(Protocol):
    """Where batches come from (trainer.data.loader.StepLoader)."""

    def steps(self, first: int, last: int) -> Iterable[tuple[int, np.ndarray, list[Batch]]]:
        """Yields (step, the global batch's sample ids, this rank's micro-batches)."""
        ...


@dataclass(frozen=True)
class Plan:
    """When the loop does what.

    Attributes:
        steps: optimizer steps of the whole run.
        stop_after: step at which this session ends.
        log_every, save_every, evaluate_every: intervals in steps; None: only at the end.
        nonfinite: ``stop`` or ``skip``.
        lr: peak learning rate.
        lr_scale: its multiplier by step.
        max_norm: gradients are clipped to this norm; None: not.
    """

    steps: int
    stop_after: int
    log_every: int
    save_every: int | None
    evaluate_every: int | None
    nonfinite: str
    lr: float
    lr_scale: Callable[[int], float]
    max_norm: float | None

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``."""
        return step == self.stop_after or (self.save_every is not None and step % self.save_every == 0)

    def evaluates(self, step: int) -> bool:
        """Whether the held-out split is due after ``step``."""
        return step == self.steps or (self.evaluate_every is not None and step % self.evaluate_every == 0)

    def reads(self, step: int) -> bool:
        """Whether the device is read after ``step``: what needs its values comes only then."""
        return step % self.log_every == 0 or self.saves(step) or self.evaluates(step)

    def next_read(self, step: int) -> int:
        """The first step from ``step`` on after which the device is read."""
        while not self.reads(step):
            step += 1
        return step


@dataclass(frozen=True)
class Outcome:
    """How a session of training ended.

    Attributes:
        step: the last one done.
        tokens_seen: targets since the beginning of the run.
        stopped_by: who asked to stop; None if the plan was carried out.
        last: the last step's record; None if the session had no step.
        evaluation: the last one of the session.
        seconds: wall time of the session's loop.
    """

    step: int
    tokens_seen: int
    stopped_by: str | None
    last: StepRecord | None
    evaluation: Evaluation | None
    seconds: float


class Trainer:
    """Runs optimizer steps until the plan or a request ends them.

    Args:
        engine: carries out steps.
        objective: for its metrics.
        loader: batches by step.
        held_out: gives the micro-batches for evaluation, anew at each call; None: no evaluation.
        plan: when to do what.
        stop: requests to stop.
        callbacks: who watches; empty on all ranks but 0.
        save: writes a checkpoint: (step, tokens seen).
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        loader: Loader,
        held_out: Callable[[], Iterable[Batch]] | None,
        plan: Plan,
        stop: StopRequest,
        callbacks: list[Callback],
        save: Callable[[int, int], None],
    ):
        self._engine = engine
        self._objective = objective
        self._loader = loader
        self._held_out = held_out
        self._plan = plan
        self._stop = stop
        self._callbacks = callbacks
        self._save = save
        self._tokens_seen = 0
        self._pending: list[tuple[int, np.ndarray, Tensor, StepStats]] = []
        self._last: StepRecord | None = None
        self._evaluation: Evaluation | None = None
        self._interval_began = 0.0

    def fit(self, done: int = 0, tokens_seen: int = 0) -> Outcome:
        """Trains from after step ``done`` on.

        Raises:
            TrainingFailed: an update was not finite and the plan says stop.
        """
        self._tokens_seen = tokens_seen
        began = self._interval_began = time.perf_counter()
        step, reason = done, None
        for step, ids, micro_batches in self._loader.steps(done + 1, self._plan.stop_after):
            self._stop.propose(self._plan.next_read(step))
            values, stats = self.train_step(step, micro_batches)
            self._pending.append((step, ids, values, stats))
            if not self._plan.reads(step):
                continue
            self._read()
            reason = self._stop.agreed(step)
            if self._plan.evaluates(step):
                self._evaluation = self.evaluate(step)
            if reason or self._plan.saves(step):
                self._save(step, self._tokens_seen)
            if reason:
                break
            self._interval_began = time.perf_counter()
        return Outcome(step, self._tokens_seen, reason, self._last, self._evaluation, time.perf_counter() - began)

    def train_step(self, step: int, micro_batches: list[Batch]) -> tuple[Tensor, StepStats]:
        """One optimizer step; reads nothing from the device.

        Returns:
            (2,) float64 on the device: the loss over the global batch and its number of targets; and what the optimizer did.
        """
        counts = self._count(micro_batches)
        terms = self._engine.forward_backward(step, micro_batches, counts)
        stats = self._engine.optimizer_step(StepPlan(step, self._plan.lr_scale(step), self._plan.max_norm))
        return torch.stack([_value(terms, counts), counts["targets"].double()]), stats

    def evaluate(self, step: int) -> Evaluation | None:
        """The objective's metrics over the held-out split; None if there is none."""
        if self._held_out is None:
            return None
        totals: dict[str, Tensor] = {}
        counted: dict[str, str] = {}
        for batch in self._held_out():
            terms = self._engine.score(batch)
            counted = {name: term.count_key for name, term in terms.items()}
            sums = {name: term.sum.double() for name, term in terms.items()}
            for name, value in {**sums, **{f"#{key}": torch.tensor(float(count)) for key, count in batch.counts.items()}}.items():
                totals[name] = totals[name] + value if name in totals else value
        return self._report(step, totals, counted)

    def _report(self, step: int, totals: dict[str, Tensor], counted: dict[str, str]) -> Evaluation:
        stacked = torch.stack([total.double().to(next(iter(totals.values())).device) for total in totals.values()])
        summed = dict(zip(totals, self._engine.sum_over_data(stacked).tolist(), strict=True))
        means = {name: summed[name] / max(1.0, summed[f"#{key}"]) for name, key in counted.items()}
        evaluation = Evaluation(step, self._objective.metrics(means), int(summed["#targets"]))
        for callback in self._callbacks:
            callback.on_evaluate(evaluation)
        return evaluation

    def _count(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """The global counts on the device; at least 1, so that a batch without targets has loss 0."""
        keys = list(micro_batches[0].counts)
        local = torch.tensor([sum(batch.counts[key] for batch in micro_batches) for key in keys])
        return dict(zip(keys, self._engine.sum_over_data(local).clamp(min=1).unbind(), strict=True))

    def _read(self) -> None:
        """Brings the pending steps' values to the host at once, tells the callbacks, and minds the finite gate."""
        rows = torch.stack(
            [torch.cat([values, stats.grad_norm[None], stats.applied[None]]) for _, _, values, stats in self._pending]
        ).tolist()
        seconds = time.perf_counter() - self._interval_began
        targets = sum(int(row[1]) for row in rows)
        records = [
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=norm,
                lr=self._plan.lr * self._plan.lr_scale(step),
                num_targets=int(num_targets),
                samples=samples_hash(ids),
                tokens_per_second=targets / max(seconds, 1e-9),
                peak_memory_bytes=_peak_memory(),
                applied=bool(applied),
            )
            for (step, ids, _, _), (loss, num_targets, norm, applied) in zip(self._pending, rows, strict=True)
        ]
        pending, self._pending = self._pending, []
        self._tokens_seen += targets
        self._last = records[-1]
        for callback in self._callbacks:
            callback.on_log(records)
        if self._plan.nonfinite == "stop":
            self._refuse_nonfinite(pending, records)

    def _refuse_nonfinite(self, pending: list[tuple[int, np.ndarray, Tensor, StepStats]], records: list[StepRecord]) -> None:
        for (step, ids, _, stats), record in zip(pending, records, strict=True):
            if record.applied:
                continue
            bad = [rank for rank, flag in enumerate(stats.bad_ranks.tolist()) if flag]
            if bad:
                shares = np.concatenate([deal(ids, rank, self._engine.data_size, ids.size)[0] for rank in bad])
                where = f"the loss was not finite on data rank {', '.join(map(str, bad))}, samples {shares[shares >= 0].tolist()}"
            else:
                where = f"the loss was finite, its gradient was not; samples {ids.tolist()}"
            raise TrainingFailed(
                f"Step {step}: the gradient norm is {record.grad_norm} and its update was not applied ({where}). "
                "Lower optimizer.lr or look at these samples; train.nonfinite=skip goes on without such steps. The last checkpoint is untouched."
            )


def _value(terms: LossTerms, counts: dict[str, Tensor]) -> Tensor:
    total = sum(term.weight * term.sum / counts[term.count_key] for term in terms.values())
    assert isinstance(total, Tensor)
    return total


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
