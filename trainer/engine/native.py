"""The native engine: torch.distributed underneath, our clipping, our gate, our state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.grad_norm import local_squared_norm, scale_gradients
from trainer.engine.loop import Loop
from trainer.engine.observe import observe_dtypes
from trainer.model.names import named_owners
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import EngineJob
from trainer.state.native import neutral_state
from trainer.types import Batch, LossTerms, Scores, StepPlan, StepStats, Term


class NativeEngine:
    """Trains a parallelized model. See trainer.protocols.Engine for the contract.

    Args:
        job: what it was built from.
        parts: the parallelized model and its optimizer.
    """

    def __init__(self, job: EngineJob, parts: Parallelized):
        self._parts = parts
        self.device = job.device
        self._world_size = dist.get_world_size()
        self.data_rank, self.data_size = dist.get_rank(), dist.get_world_size()  # every axis so far is a data axis
        self._loop = Loop(parts, job.objective, job.device, self.data_rank, self.data_size, job.seed)
        self._named = list(named_owners(parts.model))
        self._parameters = [parameter for _, parameter in self._named]
        self._first_block = next(parts.model.get_submodule(job.skeleton.family.blocks[0]).children())
        self._dtypes: dict[str, str] | None = None
        self._peak_rates = [group["lr"] for group in parts.optimizer.param_groups]
        self._squared_norm: Tensor | None = None
        self._rank_losses = torch.zeros(self.data_size, dtype=torch.float64, device=job.device)
        self._lower, self._higher = self._rank_losses[: self.data_rank], self._rank_losses[self.data_rank + 1 :]
        parts.model.train()

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; moves them to the device first."""
        summed = values.to(self.device, non_blocking=True)
        if self.data_size > 1:
            dist.all_reduce(summed)
        return summed

    def gather_over_data(self, values: Tensor) -> Tensor:
        """The data ranks' ``values`` (n, ...) one after the other, on every rank."""
        values = values.to(self.device).contiguous()
        gathered = [torch.empty_like(values) for _ in range(self.data_size)]
        dist.all_gather(gathered, values)
        return torch.cat(gathered)

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient; one packed all-reduce brings loss terms, norm and each rank's loss together."""
        if self._dtypes is None:
            with observe_dtypes(self._first_block, self._parts.optimizer) as self._dtypes:
                local = self._loop.run(step, micro_batches, counts)
        else:
            local = self._loop.run(step, micro_batches, counts)
        sums = torch.stack([term.sum for term in local.values()])
        squared = local_squared_norm(self._parameters, self._world_size, self.device)
        # This rank's own loss between zeros for the other ranks: added up, each has its place. The norm makes all of it float64.
        parts = [sums, squared[None], self._lower, sums.sum(0, keepdim=True), self._higher]
        packed = self.sum_over_data(torch.cat(parts))
        *totals, self._squared_norm = packed[: len(local) + 1].unbind()
        self._rank_losses = packed[len(local) + 1 :]
        return {name: Term(total, term.count_key, term.weight) for total, (name, term) in zip(totals, local.items(), strict=True)}

    def optimizer_step(self, plan: StepPlan) -> StepStats:
        """Clips and applies the gradient; the fused optimizer itself leaves everything untouched when the norm is not finite."""
        assert self._squared_norm is not None, "optimizer_step needs the gradient of a forward_backward"
        optimizer = self._parts.optimizer
        norm = self._squared_norm.sqrt()
        finite = norm < math.inf  # false for NaN too
        if plan.max_norm is not None:
            scale_gradients(self._parameters, norm, plan.max_norm)
        for group, peak in zip(optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * plan.lr_scale
        # Where parameters rest: torch itself would fetch it to an offloaded one without waiting for it to arrive.
        optimizer.found_inf = (~finite).float().to(self._parameters[0].device)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._squared_norm = None
        return StepStats(grad_norm=norm, applied=finite, rank_losses=self._rank_losses)

    @torch.no_grad()
    def score(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """This rank's terms of one micro-batch and the scores they were made of, dropout off."""
        with self._evaluating():
            return self._loop.judged(batch)

    @contextmanager
    def inference(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yields the transformers model and what ``generate`` must be told: sharded ranks have to take the same number of steps."""
        with torch.no_grad(), self._evaluating():
            self._parts.gather_root()  # an encoder-decoder's ``generate`` calls the encoder past the root, which would gather its own
            yield self._parts.model, {"synced_gpus": self._world_size > 1}

    def state(self) -> dict[str, Tensor]:
        """The live tensors by neutral name; loading writes into them."""
        return neutral_state(self._named, self._parts.optimizer)

    def dtypes(self) -> dict[str, str]:
        """The number type of each kind of tensor, observed during the first step; empty before it."""
        return dict(self._dtypes or {})

    def close(self) -> None:
        """Drops the model and the optimizer."""
        del self._parts, self._loop, self._named, self._parameters

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._parts.model.eval()
        try:
            yield
        finally:
            self._parts.model.train()
