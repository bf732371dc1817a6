"""What engines have in common, whatever carries out their steps: sums over ranks, evaluation, and what the first step shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.log import LOGGER
from trainer.engine.data_ranks import DataRanks
from trainer.engine.loop import Loop
from trainer.engine.observe import observe_compute
from trainer.parallel.compiling import compile_seconds, uncompiled
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import EngineJob
from trainer.types import Batch, LossTerms, Scores


class BaseEngine:
    """One half of an engine; the other makes steps of ``_run`` and keeps the state. See trainer.protocols.Engine for the contract.

    Args:
        job: what it was built from.
        parts: the parallelized model and its optimizer.
        in_step: whether ranks have to call the model equally often.
    """

    def __init__(self, job: EngineJob, parts: Parallelized, in_step: bool):
        self.device = job.device
        self._parts, self._in_step = parts, in_step
        self._ranks = DataRanks(job.device, job.mesh, speaks=parts.pipeline is None or parts.pipeline.stages[-1].is_last)
        self.data_rank, self.data_size = self._ranks.rank, self._ranks.size
        self._loop = (_pipeline_runner() if parts.pipeline else Loop)(parts, job, self.data_rank, self.data_size)
        self._first_block, self._compiles = parts.first_block, job.compiles
        self._peak_rates = [group["lr"] for group in parts.optimizer.param_groups]
        self._dtypes: dict[str, str] = {}
        parts.model.train()

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; moves them to the device first."""
        return self._ranks.sum(values)

    def gather_over_data(self, values: Tensor) -> Tensor:
        """The data ranks' ``values`` (n, ...) one after the other, on every rank."""
        return self._ranks.gather(values)

    @torch.no_grad()
    def score(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """This rank's terms of one micro-batch and the scores they were made of, dropout off."""
        with self._evaluating():
            return self._loop.judged(batch)

    @contextmanager
    def inference(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yields the transformers model and what ``generate`` must be told: whether ranks have to take the same number of steps."""
        if self._parts.pipeline:
            with torch.no_grad(), self._parts.pipeline.assembled() as model:
                yield model, {"synced_gpus": False}
            return
        with torch.no_grad(), self._evaluating(), uncompiled(self._compiles):
            self._parts.gather_root()  # an encoder-decoder's ``generate`` calls the encoder past the root, which would gather its own
            yield self._parts.model, {"synced_gpus": self._in_step}

    def bubble(self) -> float | None:
        """The share of the steps since the last call, 32 at most, in which ranks of a pipeline waited for one another; None without one."""
        return self._loop.bubble()

    def dtypes(self) -> dict[str, str]:
        """The number type of each kind of tensor, observed during the first step; empty before it."""
        return dict(self._dtypes)

    def files(self) -> dict[str, dict[str, Any]]:
        """Nothing: there is no library underneath that has a configuration."""
        return {}

    def close(self) -> None:
        """Drops the model and the optimizer."""
        del self._parts, self._loop, self._first_block

    def _run(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient, and watches the first time which number types it is made of.

        Returns:
            This rank's terms, summed over its micro-batches.
        """
        if self._dtypes:
            return self._loop.run(step, micro_batches, counts)
        begun = compile_seconds() if self._compiles else 0.0
        with observe_compute(self._first_block) as seen:
            local = self._loop.run(step, micro_batches, counts)
        self._dtypes = seen | self._kept_dtypes()
        if self._compiles:
            LOGGER.info("step %d compiled the blocks in %.1f s", step, compile_seconds() - begun)
        return local

    def _set_rates(self, scale: float) -> None:
        """Gives each group of parameters ``scale`` times the rate that the optimizer was built with."""
        for group, peak in zip(self._parts.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * scale

    def _kept_dtypes(self) -> dict[str, str]:
        """``masters``, ``gradients`` and ``moments``, as they are after a backward."""
        raise NotImplementedError

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._parts.model.eval()
        try:
            yield
        finally:
            self._parts.model.train()


def _pipeline_runner() -> Any:
    """Found apart: nobody else pays for the import of torch's pipelines."""
    from trainer.engine.schedule import Schedule

    return Schedule
