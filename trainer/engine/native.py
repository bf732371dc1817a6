"""The native engine: torch.distributed underneath, our clipping, our gate, our state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.grad_norm import local_squared_norm, scale_gradients
from trainer.engine.data_ranks import DataRanks
from trainer.engine.loop import Loop
from trainer.engine.observe import observe_dtypes
from trainer.model.names import named_owners
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import EngineJob
from trainer.state.native import neutral_state
from trainer.types import Batch, LossTerms, Scores, StepPlan, StepStats


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
        self._ranks = DataRanks(job.device)
        self.data_rank, self.data_size = self._ranks.rank, self._ranks.size
        self._loop = Loop(parts, job.objective, job.device, self.data_rank, self.data_size, job.seed)
        self._named = list(named_owners(parts.model))
        self._parameters = [parameter for _, parameter in self._named]
        self._first_block = next(parts.model.get_submodule(job.skeleton.family.blocks[0]).children())
        self._dtypes: dict[str, str] | None = None
        self._peak_rates = [group["lr"] for group in parts.optimizer.param_groups]
        self._squared_norm: Tensor | None = None
        parts.model.train()

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; moves them to the device first."""
        return self._ranks.sum(values)

    def gather_over_data(self, values: Tensor) -> Tensor:
        """The data ranks' ``values`` (n, ...) one after the other, on every rank."""
        return self._ranks.gather(values)

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient; one packed all-reduce brings loss terms, norm and each rank's loss together."""
        if self._dtypes is None:
            with observe_dtypes(self._first_block, self._parts.optimizer) as self._dtypes:
                local = self._loop.run(step, micro_batches, counts)
        else:
            local = self._loop.run(step, micro_batches, counts)
        terms, squared = self._ranks.totals(local, local_squared_norm(self._parameters, self._world_size, self.device)[None])
        self._squared_norm = squared[0]
        return terms

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
        return StepStats(grad_norm=norm, applied=finite, rank_losses=self._ranks.losses)

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
        """The live tensors by neutral name."""
        return neutral_state(self._named, self._parts.optimizer)

    def load_state(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Lets ``read`` fill the live tensors in place."""
        read(self.state())

    def dtypes(self) -> dict[str, str]:
        """The number type of each kind of tensor, observed during the first step; empty before it."""
        return dict(self._dtypes or {})

    def files(self) -> dict[str, dict[str, Any]]:
        """Nothing: torch is called directly."""
        return {}

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
