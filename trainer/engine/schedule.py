"""The runner that takes a step's micro-batches through a pipeline, by the schedules of torch.distributed.pipelining."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from trainer.distributed.agreement import told_by
from trainer.engine.clock import Clock
from trainer.engine.loop import add, send
from trainer.parallel import fsdp
from trainer.parallel.cutting import widths
from trainer.parallel.dropout import Draws
from trainer.parallel.parallelize import Parallelized
from trainer.parallel.pipeline import Stage
from trainer.parallel.stages import LOOPED
from trainer.precision.dtypes import DTYPES
from trainer.protocols import EngineJob
from trainer.types import Batch, LossTerms, Scores, Term

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}
"""By the names of trainer.parallel.stages."""

_KEPT = 2
"""Schedules of so many shapes are kept: torch's cannot change theirs, and has buffers for the hidden states of all micro-batches of a step."""


class TimedStage(PipelineStage):
    """Torch's, which tells a clock when it is at work; what it receives has come by then."""

    def __init__(self, clock: Clock, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._clock = clock

    def forward_one_chunk(self, *given: Any, **named: Any) -> Any:
        """A micro-batch forward."""
        with self._clock.span("work"):
            return super().forward_one_chunk(*given, **named)

    def backward_one_chunk(self, *given: Any, **named: Any) -> None:
        """A micro-batch backward, or the gradients of its hidden states alone."""
        with self._clock.span("work"):
            super().backward_one_chunk(*given, **named)

    def backward_weight_one_chunk(self, *given: Any, **named: Any) -> None:
        """The gradients of weights, where they come by themselves: FSDP would add those of several micro-batches up in bf16."""
        with self._clock.span("work"):
            super().backward_weight_one_chunk(*given, **named)
            fsdp.keep_gradients(self.submod)

    def perform_reduce_grad(self, *given: Any) -> None:
        """Adds gradients up over the stage's shards and copies."""
        with self._clock.span("work"):
            super().perform_reduce_grad(*given)


class Schedule:
    """Accumulates a step's gradient, its micro-batches in flight on all stages at once.

    Args:
        parts: the stages of this rank.
        job: what is learned, where, the seed of dropout, and the type of hidden states.
        data_rank, data_size: this rank's place among those that see different samples.
    """

    def __init__(self, parts: Parallelized, job: EngineJob, data_rank: int, data_size: int):
        assert parts.pipeline is not None
        self._pipeline, self._stages = parts.pipeline, parts.pipeline.stages
        self._objective, self._device, self._data_size = job.objective, job.device, data_size
        self._dtype = DTYPES[job.precision.compute]
        self._dropout = Draws(job.seed, data_rank, job.device, [stage.model for stage in self._stages])
        self._widths = widths(self._stages[0].model)
        self._clock = Clock(job.device)
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._described: list[list[Any]] | None = None

    def run(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Adds the gradient of each term / its global count to every parameter.

        Returns:
            The last stage's terms, summed over its micro-batches; elsewhere zeros.
        """
        shares = {key: count.reciprocal() for key, count in counts.items()}
        totals: LossTerms = {}

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            terms = self._objective.loss(self._stages[-1].scorer.scores(outputs, batch.labels), batch)
            add(totals, terms)
            learned = [
                term.sum * (shares[term.count_key] * (term.weight * self._data_size)) for term in terms.values() if term.sum.requires_grad
            ]
            return sum(learned[1:], start=learned[0])

        batches = [send(batch, self._device) for batch in micro_batches]
        self._begin(batches, partial(self._dropout.at, step), loss)
        schedule, numbers = self._schedule(batches), torch.arange(len(batches), device=self._device)
        try:
            with self._clock.step():
                schedule.step(numbers, target=numbers, return_outputs=False)
        except RuntimeError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from None  # torch puts what a stage was called with in its place
        return self._everywhere(totals)

    @torch.no_grad()
    def judged(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """The objective's terms of one micro-batch, as evaluation wants them, and what they were made of."""
        sent = send(batch, self._device)
        self._begin([sent], partial(self._dropout.at, 0), lambda outputs, batch: outputs)
        plan, group = self._pipeline.plan, self._pipeline.group
        own = {stage.index: stage for stage in self._stages}
        crossing: tuple[Tensor, ...] = ()
        for index, stage in own.items():
            if index > 0 and index - 1 not in own:
                crossing = self._hidden(stage.takes, sent)
                for tensor in crossing:
                    dist.recv(tensor, group=group, group_src=plan.rank(index - 1))
            put_out = stage(*crossing)
            crossing = put_out if isinstance(put_out, tuple) else (put_out,)
            if index + 1 < plan.count and index + 1 not in own:
                for tensor in crossing:
                    dist.send(tensor.contiguous(), group=group, group_dst=plan.rank(index + 1))
        scores = self._shared(own.get(plan.count - 1))
        return self._objective.loss(scores, sent), scores

    def bubble(self) -> float:
        """The share of the last steps in which this pipeline's ranks waited for one another, on average; see trainer.types.StepRecord.

        Collective in the pipeline, and waits for the device.
        """
        _, seconds = self._clock.read()
        own = torch.tensor([seconds["work"], seconds["step"]], dtype=torch.float64, device=self._device)
        told = [torch.empty_like(own) for _ in range(self._pipeline.plan.ranks)]
        dist.all_gather(told, own, group=self._pipeline.group)
        work, elapsed = torch.stack(told).unbind(1)
        return 1 - float(work.mean() / elapsed.max())  # the longest: a rank that is through early waits for the others' ends, too

    def _begin(self, batches: list[Batch], within: Any, loss: Any) -> None:
        """Lays micro-batches ready for the stages."""
        feed = self._pipeline.feed
        feed.batches, feed.within, feed.loss = batches, within, loss
        for stage in self._stages:
            stage.number = 0

    def _schedule(self, batches: list[Batch]) -> Any:
        """Torch's schedule for so many micro-batches of this shape."""
        inputs = batches[0].inputs
        key = (len(batches), *(inputs[name].shape for name in self._widths if name in inputs))
        found = self._kept.pop(key, None)
        while len(self._kept) >= _KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = found or self._torchs_schedule(batches)
        return self._kept[key]

    def _torchs_schedule(self, batches: list[Batch]) -> Any:
        stages = [self._torchs(stage, batches[0]) for stage in self._stages]
        made, one = SCHEDULES[self._pipeline.plan.schedule], self._pipeline.plan.schedule not in LOOPED
        return made(stages[0] if one else stages, len(batches), loss_fn=lambda loss, number: loss, scale_grads=False)

    def _torchs(self, stage: Stage, batch: Batch) -> PipelineStage:
        """What torch calls a stage, told of all shapes: it would try them out, and cannot do without that for sharded models."""
        takes = torch.zeros(1, dtype=torch.int64) if stage.is_first else self._hidden(stage.takes, batch, "meta")
        gives = torch.zeros(()) if stage.is_last else self._hidden(stage.gives, batch, "meta")
        count, group = self._pipeline.plan.count, self._pipeline.group
        return TimedStage(self._clock, stage, stage.index, count, self._device, takes, gives, group=group)

    def _hidden(self, names: tuple[str, ...], batch: Batch, device: Any = None) -> tuple[Tensor, ...]:
        """Empty hidden states with the slots of the inputs ``names``."""
        shapes = [(*batch.inputs[name].shape, self._widths[name]) for name in names]
        wants = device == "meta"
        return tuple(torch.empty(shape, dtype=self._dtype, device=device or self._device, requires_grad=wants) for shape in shapes)

    def _everywhere(self, totals: LossTerms) -> LossTerms:
        """Terms of the same names on every rank, so that they can be added up; what they are called travels once."""
        if self._described is None:
            own = [(name, term.count_key, term.weight) for name, term in totals.items()]
            self._described = told_by(self._last, own, self._pipeline.group, self._device)
        if totals:
            return totals
        return {name: Term(torch.zeros((), device=self._device), key, weight) for name, key, weight in self._described}

    @property
    def _last(self) -> int:
        return self._pipeline.plan.rank(self._pipeline.plan.count - 1)

    def _shared(self, last: Stage | None) -> Scores:
        """The last stage's scores on every rank of the pipeline."""
        group = self._pipeline.group
        found = {} if last is None or last.scores is None else {k: v for k, v in vars(last.scores).items() if v is not None}
        own = {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in found.items()}
        for name, (shape, dtype) in told_by(self._last, own, group, self._device).items():
            if last is None:
                found[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
            found[name] = found[name].contiguous()
            dist.broadcast(found[name], group=group, group_src=self._last)
        return Scores(**found)
