"""The native engine: torch.distributed underneath, our clipping, our gate, our state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.grad_norm import Gradients
from trainer.distributed.sharding import local_part
from trainer.engine.base import BaseEngine
from trainer.engine.observe import kept_dtypes
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import EngineJob
from trainer.state.native import neutral_state, repeat_copies
from trainer.types import Batch, LossTerms, StepPlan, StepStats


class NativeEngine(BaseEngine):
    """Trains a parallelized model. See trainer.protocols.Engine for the contract.

    Args:
        job: what it was built from.
        parts: the parallelized model and its optimizer.
    """

    def __init__(self, job: EngineJob, parts: Parallelized):
        self._world_size = dist.get_world_size()
        super().__init__(job, parts, in_step=self._world_size > 1)
        self._named = parts.named
        stages = job.mesh["pipeline"].size()
        holders = parts.pipeline.holders if parts.pipeline else [1] * len(self._named)
        ranks_of = [self._world_size // stages * of_one for of_one in holders]
        self._gradients = Gradients([(parameter, ranks) for (_, parameter), ranks in zip(self._named, ranks_of, strict=True)], self.device)
        self._parameters_on = self._named[0][1].device
        self._in_buckets = parts.trained is not parts.scorer  # DDP's: a new gradient would lie beside them until a step's last backward
        self._squared_norm: Tensor | None = None
        self._tensor_group = job.mesh.get_group("tensor")

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient; one packed all-reduce brings loss terms, norm and each rank's loss together."""
        local = self._run(step, micro_batches, counts)
        self._add_up_parts()
        for shared in self._parts.pipeline.shared if self._parts.pipeline else ():
            shared.add_up()
        own = self._gradients.local_squared_norm()
        terms, (self._squared_norm,) = self._ranks.totals(local, own)
        return terms

    def optimizer_step(self, plan: StepPlan) -> StepStats:
        """Clips and applies the gradient; the fused optimizer itself leaves everything untouched when the norm is not finite."""
        assert self._squared_norm is not None, "optimizer_step needs the gradient of a forward_backward"
        optimizer = self._parts.optimizer
        norm = self._squared_norm.sqrt()
        finite = norm < math.inf  # false for NaN too
        if plan.max_norm is not None:
            self._gradients.clip(norm, plan.max_norm)
        self._set_rates(plan.lr_scale)
        optimizer.found_inf = self._spoiled(finite)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=not self._in_buckets)
        self._squared_norm = None
        return StepStats(grad_norm=norm, applied=finite, rank_losses=self._ranks.losses)

    def state(self) -> dict[str, Tensor]:
        """The live tensors by neutral name."""
        for shared in self._parts.pipeline.shared if self._parts.pipeline else ():
            shared.require_alike()
        return neutral_state(self._named, self._parts.optimizer, self._parts.fused)

    def load_state(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Lets ``read`` fill the live tensors in place."""
        read(self.state())
        repeat_copies(self._named, self._parts.optimizer)

    def close(self) -> None:
        """Drops the model and the optimizer."""
        super().close()
        del self._named, self._gradients

    def _spoiled(self, finite: Tensor) -> Tensor | None:
        """What the fused optimizer is told: 1 where it has to leave everything untouched.

        A CPU need not wait to see that all is well, and nothing is said of it then: told a 0, the optimizer takes it back from every step count.
        """
        if finite.device.type == "cpu" and finite:
            return None
        # Where parameters rest: torch itself would fetch it to an offloaded one without waiting for it to arrive.
        return (~finite).float().to(self._parameters_on)

    def _add_up_parts(self) -> None:
        """Sums the gradients of which each rank of the tensor axis has a part; they are small (norms, biases), so they go in one packet."""
        parts = [local_part(parameter.grad) for parameter in self._parts.summed if parameter.grad is not None]
        if not parts:
            return
        packed = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(packed, group=self._tensor_group)
        for part, whole in zip(parts, packed.split([part.numel() for part in parts]), strict=True):
            part.copy_(whole.view_as(part))

    def _kept_dtypes(self) -> dict[str, str]:
        return kept_dtypes(self._parts.optimizer)
