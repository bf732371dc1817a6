"""The training loop. It knows steps, batches and records; how a step is carried out is the engine's business."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.callbacks.ranks import RankFigures, peak_memory
from trainer.data.loader import deal
from trainer.data.order import samples_hash
from trainer.distributed.log import LOGGER
from trainer.engine.clock import Clock
from trainer.errors import TrainingFailed
from trainer.types import Batch, Evaluation, LossTerms, StepPlan, StepRecord, StepStats

if TYPE_CHECKING:
    from trainer.callbacks.throughput import Throughput
    from trainer.distributed.stop import StopRequest
    from trainer.evaluation import Evaluator
    from trainer.protocols import Callback, Engine, Saver


Step = tuple[int, np.ndarray, list[Batch]]


class Loader(Protocol):
    """Where batches come from (trainer.data.loader.StepLoader)."""

    def steps(self, first: int, last: int) -> Iterable[Step]:
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

    def saves_after(self, done: int) -> int:
        """How many checkpoints are due after step ``done``."""
        if self.save_every is None:
            return 1
        return self.stop_after // self.save_every - done // self.save_every + (self.stop_after % self.save_every > 0)

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
        phases: of them by what they were spent with: ``data``, ``forward_backward``, ``optimizer``, ``evaluation`` and ``checkpoints``.
    """

    step: int
    tokens_seen: int
    stopped_by: str | None
    last: StepRecord | None
    evaluation: Evaluation | None
    seconds: float
    phases: dict[str, float]


@dataclass(frozen=True)
class StepValues:
    """What a step left on the device, to be read at the next log interval.

    Attributes:
        terms: of the loss, over the global batch.
        counts: what divides them.
        stats: what the optimizer did.
    """

    terms: LossTerms
    counts: dict[str, Tensor]
    stats: StepStats


class Trainer:
    """Runs optimizer steps until the plan or a request ends them.

    Args:
        engine: carries out steps.
        loader: batches by step.
        plan: when to do what.
        stop: requests to stop.
        callbacks: who watches; empty on all ranks but 0.
        saver: keeps checkpoints.
        throughput: counts what steps are made of.
        evaluator: measures on held-out samples; None: there are none.
        watching: context for a step, told its number.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Loader,
        plan: Plan,
        stop: StopRequest,
        callbacks: list[Callback],
        saver: Saver,
        throughput: Throughput,
        evaluator: Evaluator | None = None,
        watching: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext(),
    ):
        self._engine = engine
        self._loader = loader
        self._evaluator = evaluator
        self._plan = plan
        self._stop = stop
        self._callbacks = callbacks
        self._saver = saver
        self._throughput = throughput
        self._watching = watching
        self._tokens_seen = 0
        self._pending: list[tuple[int, np.ndarray, StepValues]] = []
        self._last: StepRecord | None = None
        self._evaluation: Evaluation | None = None
        self._began = self._interval_began = 0.0
        self._clock = Clock(engine.device)
        self._phases: dict[str, float] = defaultdict(float)
        self._data_before, self._waited = 0.0, 0.0

    def account(self) -> dict[str, Any]:
        """The session so far: the last ``step`` that was read, ``seconds`` and ``phases`` as in ``Outcome``."""
        seconds = time.perf_counter() - self._began
        return {"step": self._last.step if self._last else None, "seconds": seconds, "phases": dict(self._phases)}

    def fit(self, done: int = 0, tokens_seen: int = 0) -> Outcome:
        """Trains from after step ``done`` on.

        Raises:
            TrainingFailed: an update was not finite and the plan says stop.
        """
        self._tokens_seen = tokens_seen
        self._began = self._interval_began = time.perf_counter()
        step, next_read, reason = done, done, None
        for step, ids, micro_batches in self._awaited(self._loader.steps(done + 1, self._plan.stop_after)):
            if step > next_read:
                next_read = self._plan.next_read(step)
            self._stop.propose(next_read)
            with self._watching(step):
                self._pending.append((step, ids, self.train_step(step, micro_batches)))
            if step < next_read:
                continue
            self._read()
            self._saver.look()
            reason = self._stop.agreed(step)
            if self._plan.evaluates(step):
                with self._counted("evaluation"):
                    self._evaluation = self.evaluate(step)
            if reason or self._plan.saves(step):
                with self._counted("checkpoints"):
                    self._saver.save(step, self._tokens_seen)
            if reason:
                break
            self._interval_began = time.perf_counter()
        with self._counted("checkpoints"):
            self._saver.finish()
        seconds = time.perf_counter() - self._began
        return Outcome(step, self._tokens_seen, reason, self._last, self._evaluation, seconds, dict(self._phases))

    def train_step(self, step: int, micro_batches: list[Batch]) -> StepValues:
        """One optimizer step; reads nothing from the device."""
        self._throughput.add(micro_batches)
        with self._clock.step():
            with self._clock.span("forward_backward"):
                with self._clock.span("meeting"):
                    counts = self._count(micro_batches)
                terms = self._engine.forward_backward(step, micro_batches, counts)
            with self._clock.span("optimizer"):
                self._saver.hold()
                stats = self._engine.optimizer_step(StepPlan(step, self._plan.lr_scale(step), self._plan.max_norm))
        return StepValues(terms, counts, stats)

    def figures(self) -> RankFigures:
        """This rank's session up to the last read of the device."""
        steps = self._phases["data"] + self._phases["forward_backward"] + self._phases["optimizer"]
        return RankFigures(peak_memory(self._engine.device), self._waited, steps)

    def evaluate(self, step: int) -> Evaluation | None:
        """The objective's metrics over the held-out samples; None if there are none."""
        if self._evaluator is None:
            return None
        evaluation = self._evaluator.evaluate(step)
        for callback in self._callbacks:
            callback.on_evaluate(evaluation)
        return evaluation

    def _count(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """The global counts on the device; at least 1, so that a batch without targets has loss 0."""
        local = {key: sum(batch.counts[key] for batch in micro_batches) for key in micro_batches[0].counts}
        counts = self._engine.sum_over_data(torch.tensor(list(local.values())))
        if not all(local.values()):  # else all ranks' together cannot be 0 either
            counts = counts.clamp(min=1)
        return dict(zip(local, counts.unbind(), strict=True))

    def _read(self) -> None:
        """Brings the pending steps' values to the host at once, tells the callbacks, and minds the finite gate."""
        losses, counted, norms, applied = _columns([values for _, _, values in self._pending])
        seconds = time.perf_counter() - self._interval_began
        targets = int(sum(counted))
        speed, spent = self._throughput.read(targets, seconds), self._spent()
        peak, bubble = peak_memory(self._engine.device), self._engine.bubble()
        records = [
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=norm,
                lr=self._plan.lr * self._plan.lr_scale(step),
                num_targets=int(num_targets),
                samples=samples_hash(ids),
                **speed,
                peak_memory_bytes=peak,
                applied=bool(was_applied),
                seconds=spent,
                bubble=bubble,
            )
            for (step, ids, _), loss, num_targets, norm, was_applied in zip(self._pending, losses, counted, norms, applied, strict=True)
        ]
        pending, self._pending = self._pending, []
        self._tokens_seen += targets
        self._last = records[-1]
        for callback in self._callbacks:
            callback.on_log(records)
        if sentence := self._nonfinite(pending, records):
            if self._plan.nonfinite == "stop":
                LOGGER.error(sentence)  # a save that fails has the last word
                self._saver.finish()  # what is being written is from before
                raise TrainingFailed(
                    f"{sentence} Lower optimizer.lr or look at these samples; train.nonfinite=skip goes on without such steps. "
                    "The last checkpoint is untouched."
                )
            LOGGER.warning(sentence)

    def _awaited(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yields each step's batch, and counts how long it was waited for."""
        batches = iter(steps)
        while True:
            with self._counted("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def _counted(self, phase: str) -> Iterator[None]:
        """Adds the seconds that the host spends inside to a phase of the session."""
        began = time.perf_counter()
        yield
        self._phases[phase] += time.perf_counter() - began

    def _spent(self) -> dict[str, float]:
        """Seconds of a step by phase, on average over the pending ones."""
        steps, seconds = self._clock.read()
        spent = {"data": (self._phases["data"] - self._data_before) / len(self._pending)}
        self._data_before = self._phases["data"]
        for phase in ("forward_backward", "optimizer"):
            spent[phase] = seconds[phase] / max(steps, 1)
            self._phases[phase] += spent[phase] * len(self._pending)
        self._waited += seconds["meeting"] / max(steps, 1) * len(self._pending)
        return spent

    def _nonfinite(self, pending: list[tuple[int, np.ndarray, StepValues]], records: list[StepRecord]) -> str | None:
        """Where the first step that was not applied went wrong; None if all were."""
        for (step, ids, values), record in zip(pending, records, strict=True):
            if record.applied:
                continue
            bad = [rank for rank, flag in enumerate(values.stats.bad_ranks.tolist()) if flag]
            if bad:
                shares = np.concatenate([deal(ids, rank, self._engine.data_size, ids.size)[0] for rank in bad])
                where = f"the loss was not finite on data rank {', '.join(map(str, bad))}, samples {shares[shares >= 0].tolist()}"
            else:
                where = f"the loss was finite, its gradient was not; samples {ids.tolist()}"
            return f"Step {step}: the gradient norm is {record.grad_norm} and its update was not applied ({where})."
        return None


def _columns(steps: list[StepValues]) -> list[list[float]]:
    """Loss, number of targets, gradient norm and whether it was applied of each step: four lists, read from the device in one go."""
    counts = {key: torch.stack([values.counts[key] for values in steps]).double() for key in steps[0].counts}
    losses = torch.zeros_like(counts["targets"])
    for name, term in steps[0].terms.items():
        losses += term.weight * torch.stack([values.terms[name].sum for values in steps]) / counts[term.count_key]
    norms = torch.stack([values.stats.grad_norm for values in steps])
    applied = torch.stack([values.stats.applied for values in steps])
    return torch.stack([losses, counts["targets"], norms, applied]).tolist()
