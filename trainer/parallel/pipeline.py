"""Pipeline parallelism: what a rank has of the stages, and how one of them is run.

Hidden states that come from the stage before take the place of the model's own where this stage's blocks begin; what leaves the last of its
blocks goes to the next stage. Nothing else travels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.distributed.sharding import local_part
from trainer.model.families import Family
from trainer.model.head import Scorer
from trainer.parallel.cutting import Places, crossing, encoder_path, encodes_only, stand_in
from trainer.parallel.stages import Stages
from trainer.types import Batch, Scores

OF_ENCODER = ("input_ids", "attention_mask", "lengths", "position_ids")
"""What an encoder is called with by itself."""


@dataclass(frozen=True)
class Shared:
    """A parameter that several stages have, whose gradients have to be added up.

    Attributes:
        name: of its owner.
        here: this rank's copies of it.
        group: of the ranks that have it too; None: no other rank has.
    """

    name: str
    here: tuple[nn.Parameter, ...]
    group: Any

    @torch.no_grad()
    def add_up(self) -> None:
        """Gives each copy the sum of the gradients of all."""
        parts = []
        for parameter in self.here:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parts.append(local_part(parameter.grad))
        for part in parts[1:]:
            parts[0].add_(part)
        if self.group is not None:
            dist.all_reduce(parts[0], group=self.group)
        for part in parts[1:]:
            part.copy_(parts[0])

    def require_alike(self) -> None:
        """Holds all copies against one another, by a sum over their bits that no order of adding up changes. Collective in ``group``."""
        sums = torch.stack(
            [local_part(parameter.detach()).contiguous().view(torch.int32).sum(dtype=torch.int64) for parameter in self.here]
        )
        lowest, highest = sums.min(), sums.max()
        if self.group is not None:
            dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self.group)
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        assert torch.equal(lowest, highest), f"{self.name} is not the same on all stages that have it"


@dataclass(frozen=True)
class Pipelined:
    """What a rank has of a pipeline.

    Attributes:
        plan: the whole pipeline.
        stages: this rank's, ascending.
        feed: where they find micro-batches.
        shared: parameters that other stages have too.
        holders: how many stages have each of the rank's parameters.
        assembled: the whole model on every rank, for as long as the context lasts.
        group: the ranks of the pipeline axis.
    """

    plan: Stages
    stages: tuple[Stage, ...]
    feed: Feed
    shared: Sequence[Shared]
    holders: Sequence[int]
    assembled: Callable[[], AbstractContextManager[nn.Module]]
    group: Any


@dataclass
class Feed:
    """Where a stage finds its micro-batches: none of them travels.

    Attributes:
        batches: the step's, on the device.
        within: what a stage computes in: number of the micro-batch, number of the stage.
        loss: of the last stage's outputs and the micro-batch that they are of.
    """

    batches: Sequence[Batch] = ()
    within: Callable[[int, int], AbstractContextManager[None]] = lambda number, stage: nullcontext()
    loss: Callable[[Tensor, Batch], Tensor] = lambda outputs, batch: outputs


class Stage(nn.Module):
    """One stage of a pipeline, as torch.distributed.pipelining calls it.

    Args:
        model: the transformers model, cut.
        scorer: calls it, or its encoder alone where the stage has nothing behind that.
        family: of the model.
        stages: the whole pipeline.
        where: which block everything goes with.
        index: of this stage.
        feed: where micro-batches come from.
    """

    def __init__(self, model: Any, scorer: Scorer, family: Family, stages: Stages, where: Places, index: int, feed: Feed):
        super().__init__()
        self.model, self.scorer, self.feed, self.index = model, scorer, feed, index
        self.is_first, self.is_last = index == 0, index == stages.count - 1
        own = stages.blocks(index)
        self.takes, self.gives = crossing(where, own.start), crossing(where, own.stop)
        self.scores: Scores | None = None
        self.number = 0
        self._encodes_only = encodes_only(where, own)
        self._is_told = where.stack(own.start) == 1 and not self.is_first  # what the encoder put out
        self._entry = stand_in(model, family, where, own.start - 1, beside=own.start)
        self._exit = stand_in(model, family, where, own.stop, beside=own.stop - 1)
        self._encoded: list[Tensor] = []
        if len(where.stacks) == 2 and not self._is_told:
            encoder = model.get_submodule(encoder_path(family))
            encoder.register_forward_hook(lambda module, arguments, output: self._encoded.append(output[0]))

    def forward(self, *received: Tensor) -> Any:
        """Takes the next micro-batch: what the next stage takes of it, or on the last one its loss; in evaluation, its scores' tensor.

        Args:
            received: what the stage before gave; nothing that matters for the first.
        """
        # Every schedule takes them in this order: to be told would be to wait for the device.
        number, self.number = self.number, self.number + 1
        batch = self.feed.batches[number]
        with self.feed.within(number, self.index):
            given = () if self.is_first else received
            inputs: dict[str, Any] = dict(batch.inputs)
            if self._is_told:
                inputs["encoder_outputs"] = given[:1]
                given = given[1:]
            if self._entry is not None:
                (self._entry.puts_in,) = given
            return self._run(inputs, batch, received)

    def _run(self, inputs: dict[str, Any], batch: Batch, received: Sequence[Tensor]) -> Any:
        if self.is_last:
            if self.model.training:
                return self.feed.loss(self.scorer(inputs, batch.labels, batch.places), batch)
            self.scores = self.scorer.score(inputs, batch.labels, batch.places)
            return self.scores.logits if self.scores.nll is None else self.scores.nll
        if self._encodes_only:
            inputs = {name: tensor for name, tensor in inputs.items() if name in OF_ENCODER}
        self._encoded.clear()
        self.scorer.call(inputs)
        leaves = [received[0].clone()] if self._is_told else [*self._encoded]
        self._encoded.clear()
        if self._exit is not None:
            assert self._exit.saw is not None
            leaves = [*leaves[: len(self.gives) - 1], self._exit.saw]
            self._exit.saw = None
        leaves = [leaf.clone() if leaf._is_view() else leaf for leaf in leaves]  # torch detaches them in place
        return tuple(leaves) if len(leaves) > 1 else leaves[0]
