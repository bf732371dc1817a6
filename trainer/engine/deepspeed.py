"""ZeRO 1, 2 and 3 on DeepSpeed, with our loss rule, clipping, gate and neutral state. The only file that imports deepspeed.

DeepSpeed keeps masters and moments in flat buffers of which each rank holds a range; ``state`` gives views of them, so that a checkpoint
is written and read without gathering. What is private to DeepSpeed here is tested on the version in constraints.txt.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.distributed.log import quiet_deepspeed
from trainer.engine.data_ranks import DataRanks
from trainer.engine.loop import Loop
from trainer.engine.observe import observe_compute
from trainer.errors import Refused
from trainer.model.head import Scorer, swap_head
from trainer.model.names import aliases, named_owners
from trainer.model.weights import Unfilled
from trainer.parallel.parallelize import Parallelized, allocate, fill, put
from trainer.precision.dtypes import DTYPES
from trainer.protocols import EngineJob, Weights
from trainer.state.zero import Partitions
from trainer.types import Batch, LossTerms, Scores, StepPlan, StepStats


def build_deepspeed(job: EngineJob, settings: dict[str, Any]) -> DeepSpeedEngine:
    """Builds the engine around ``job.skeleton``, in place.

    Args:
        job: what to train.
        settings: DeepSpeed's own JSON (trainer.strategy.zero).
    """
    deepspeed = _import_deepspeed(job.device)
    model, family, ending = job.skeleton.model, job.skeleton.family, job.skeleton.head
    frozen = next((name for name, parameter in named_owners(model) if not parameter.requires_grad), None)
    if frozen and job.precision.compute == "bf16":
        raise Refused(
            f"{frozen} is frozen, and under bf16 DeepSpeed keeps frozen parameters in bf16 only: use strategy=fsdp or precision=fp32."
        )
    tied = aliases(model)
    head = swap_head(model, ending)
    told = ExitStack()
    told.enter_context(_local_rank(job.device))
    if settings["zero_optimization"]["stage"] == 3:
        optimizer = _fill_sharded(deepspeed, job, settings, tied)
    else:
        for parameter in model.parameters():  # DeepSpeed would cast them afterwards; their masters are filled in fp32 below
            parameter.data = parameter.data.to(DTYPES[job.precision.compute])
        allocate(model, tied, job.device, job.device)
        fill(model, job.weights)
        optimizer = job.make_optimizer(named_owners(model))
    scorer, named = Scorer(model, head, family, ending.bias), list(named_owners(model))
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=settings, dist_init_required=False)
    return DeepSpeedEngine(job, engine, scorer, named, settings, told)


class DeepSpeedEngine:
    """Trains a model under ZeRO. See trainer.protocols.Engine for the contract.

    Args:
        job: what it was built from.
        engine: DeepSpeed's.
        scorer: what it wraps.
        named: (checkpoint name, parameter), tied parameters once.
        settings: DeepSpeed's JSON.
        told: what it has to be told as long as it lives.
    """

    def __init__(
        self,
        job: EngineJob,
        engine: Any,
        scorer: Scorer,
        named: Sequence[tuple[str, nn.Parameter]],
        settings: dict[str, Any],
        told: ExitStack,
    ):
        self.device, self._settings, self._told = job.device, settings, told
        self._engine, self._zero, self._model = engine, engine.optimizer, scorer.model
        self._sharded = engine.zero_optimization_stage() == 3
        self._ranks = DataRanks(job.device)
        self.data_rank, self.data_size = self._ranks.rank, self._ranks.size
        self._partitions = Partitions(self._zero, named)
        parts = Parallelized(
            scorer.model,
            scorer,
            engine,
            self._accumulating,
            self._zero,
            gather_root=lambda: None,
            rehearses=False,
            backward=self._backward,
        )
        self._loop = Loop(parts, job.objective, job.device, self.data_rank, self.data_size, job.seed)
        self._first_block = next(scorer.model.get_submodule(job.skeleton.family.blocks[0]).children())
        self._dtypes: dict[str, str] | None = None
        self._peak_rates = [group["lr"] for group in self._zero.optimizer.param_groups]
        if engine.bfloat16_enabled() and not isinstance(job.weights, Unfilled):
            self._fill_masters(job.weights)
        scorer.train()

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over the data ranks; moves them to the device first."""
        return self._ranks.sum(values)

    def gather_over_data(self, values: Tensor) -> Tensor:
        """The data ranks' ``values`` (n, ...) one after the other, on every rank."""
        return self._ranks.gather(values)

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient; one packed all-reduce brings loss terms and each rank's loss together."""
        if self._dtypes is None:
            with observe_compute(self._first_block) as self._dtypes:
                local = self._loop.run(step, micro_batches, counts)
            self._dtypes |= self._partitions.dtypes()
        else:
            local = self._loop.run(step, micro_batches, counts)
        return self._ranks.totals(local, torch.zeros(0, device=self.device))[0]

    def optimizer_step(self, plan: StepPlan) -> StepStats:
        """Clips and applies the gradient; DeepSpeed itself skips a step whose norm is not finite, which it reads from the device."""
        self._zero.clip_grad = plan.max_norm or 0.0
        for group, peak in zip(self._zero.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * plan.lr_scale
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float64, device=self.device)
        applied = torch.tensor(self._engine.was_step_applied(), device=self.device)
        return StepStats(grad_norm=norm, applied=applied, rank_losses=self._ranks.losses)

    @torch.no_grad()
    def score(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """This rank's terms of one micro-batch and the scores they were made of, dropout off."""
        with self._evaluating():
            return self._loop.judged(batch)

    @contextmanager
    def inference(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yields the transformers model and what ``generate`` must be told: under stage 3 ranks have to take the same number of steps."""
        with torch.no_grad(), self._evaluating():
            yield self._model, {"synced_gpus": self._sharded and self.data_size > 1}

    def state(self) -> dict[str, Tensor]:
        """The live tensors by neutral name, each rank's range of them."""
        return self._partitions.state()

    def load_state(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Lets ``read`` fill the live tensors in place, and brings them into the model."""
        state = self._partitions.state()
        read(state)
        self._partitions.take(state)

    def dtypes(self) -> dict[str, str]:
        """The number type of each kind of tensor, observed during the first step; empty before it."""
        return dict(self._dtypes or {})

    def files(self) -> dict[str, dict[str, Any]]:
        """DeepSpeed's configuration."""
        return {"deepspeed.json": self._settings}

    def close(self) -> None:
        """Drops the model and the optimizer, and the hooks that DeepSpeed has put into them."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        self._engine.destroy()
        FWD_MODULE_STACK.clear()
        self._told.close()
        del self._engine, self._zero, self._partitions, self._loop, self._model, self._first_block

    def _backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        loss = torch.stack([root * gradient for root, gradient in zip(roots, gradients, strict=True)]).sum()
        self._engine.backward(loss, scale_wrt_gas=False)

    def _accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def _fill_masters(self, weights: Weights) -> None:
        """In fp32, where DeepSpeed has made them of what it computes with."""
        for name, held, size in self._partitions.trained():
            whole = weights.fill(name).expand(size).flatten()
            held.flat.detach().narrow(0, held.at, held.length).copy_(whole.narrow(0, held.start, held.length))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._model.eval()
        begins = self._model.register_forward_pre_hook(self._begin_forward) if self._sharded else None
        try:
            yield
        finally:
            if begins is not None:
                begins.remove()
            self._model.train()

    def _begin_forward(self, *arguments: Any) -> None:
        """Stage 3 foresees which parameters come next, counted from the beginning of a forward, of which it learns only through its root."""
        self._zero.parameter_offload.get_param_coordinator().reset_step()


def _fill_sharded(deepspeed: Any, job: EngineJob, settings: dict[str, Any], tied: dict[str, str]) -> torch.optim.Optimizer:
    """Gives every parameter its first value and spreads it over the ranks, before the next one gets memory.

    Returns:
        The optimizer over them; it was built before, while their shapes, by which it groups them, could be seen.
    """
    model, dtype, filled = job.skeleton.model, DTYPES[job.precision.compute], {}
    optimizer = job.make_optimizer(named_owners(model))
    spread = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings, dtype=dtype)
    for name, meta in list(named_owners(model)):
        value = job.weights.fill(name).expand(meta.shape)
        parameter = nn.Parameter(value.to(job.device, dtype, copy=True), requires_grad=meta.requires_grad)
        put(model, name, parameter)
        spread._convert_to_zero_parameters([parameter])
        filled[meta] = parameter
    for group in optimizer.param_groups:
        group["params"] = [filled[meta] for meta in group["params"]]
    for alias, owner in tied.items():
        put(model, alias, model.get_parameter(owner))
    for name, _ in list(model.named_buffers()):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        module.register_buffer(leaf, job.weights.fill(name).to(job.device), persistent=leaf not in module._non_persistent_buffers_set)
    return optimizer


@contextmanager
def _local_rank(device: torch.device) -> Iterator[None]:
    """Tells DeepSpeed of this rank's device the one way that it asks for: a rank alone has no LOCAL_RANK, and srun may show each its own GPU only."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0) if device.type == "cuda" else before or "0"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def zero_problems(settings: dict[str, Any], device: torch.device) -> list[str]:
    """What DeepSpeed has to say against ``zero_optimization`` of its JSON, a sentence each."""
    _import_deepspeed(device)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**settings["zero_optimization"])
    except ValidationError as error:
        told = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        return [f"strategy.deepspeed: DeepSpeed refuses zero_optimization.{key}: {message}." for key, message in told]
    return []


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without what it would build and say by itself."""
    quiet_deepspeed()
    os.environ["DS_ACCELERATOR"] = device.type
    # Torch 2.13 has new names for these, which DeepSpeed does not know.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated", FutureWarning)
    import deepspeed

    # Whoever imported it before, transformers for one, let it look for a device by itself.
    if device.type == "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator as Accelerator

        # Else the first collective compiles one through shared memory, for minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator as Accelerator
    deepspeed.accelerator.set_accelerator(Accelerator())
    return deepspeed
