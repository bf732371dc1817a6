"""ZeRO 1, 2 and 3 on DeepSpeed, with our loss rule, clipping, gate and neutral state. The only file that imports deepspeed.

DeepSpeed keeps masters and moments in flat buffers of which each rank holds a range; ``state`` gives views of them, so that a checkpoint
is written and read without gathering. What is private to DeepSpeed here is tested on the version in constraints.txt.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.distributed.log import quiet_deepspeed
from trainer.engine import builds
from trainer.engine.base import BaseEngine
from trainer.engine.gathered import linear_saves_parameters
from trainer.engine.scratch import Scratch
from trainer.engine.swapping import Load, is_swapped, swap_problems
from trainer.errors import Refused
from trainer.model.head import Scorer, swap_head
from trainer.model.names import aliases, named_owners, put
from trainer.model.skeleton import blocks_of
from trainer.model.weights import Unfilled
from trainer.parallel.activation import recompute_blocks
from trainer.parallel.parallelize import Parallelized, allocate, fill
from trainer.precision.dtypes import DTYPES
from trainer.protocols import EngineJob
from trainer.state.zero import Partitions
from trainer.types import Batch, LossTerms, StepPlan, StepStats


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
    head = swap_head(model, ending, job.chunk)
    recompute_blocks(blocks_of(model, family), job.recompute)
    with ExitStack() as told:
        told.enter_context(_local_rank(job.device))
        own = _with_scratch(settings, told)
        if settings["zero_optimization"]["stage"] == 3:
            told.enter_context(linear_saves_parameters())
            optimizer = _fill_sharded(deepspeed, job, own, tied)
        else:
            for parameter in model.parameters():  # DeepSpeed would cast them afterwards; their masters are filled in fp32 below
                parameter.data = parameter.data.to(DTYPES[job.precision.compute])
            allocate(model, tied, job.device, job.device)
            fill([*named_owners(model), *model.named_buffers()], job.weights)
            optimizer = job.make_optimizer(named_owners(model))
        named = list(named_owners(model))
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=own, dist_init_required=False)
        return DeepSpeedEngine(job, engine, Scorer(model, head, family, ending.bias, wrapped=engine), named, settings, told.pop_all())


class DeepSpeedEngine(BaseEngine):
    """Trains a model under ZeRO. See trainer.protocols.Engine for the contract.

    Args:
        job: what it was built from.
        engine: DeepSpeed's.
        scorer: what calls it.
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
        self._settings, self._told = settings, told
        self._engine, self._zero = engine, engine.optimizer
        self._partitions = Partitions(self._zero, named)
        parts = Parallelized(
            scorer.model,
            blocks_of(scorer.model, job.skeleton.family)[0],
            scorer,
            scorer,
            self._accumulating,
            named,
            self._zero,
            gather_root=lambda: None,
            rehearses=False,
            backward=self._backward,
        )
        is_sharded = engine.zero_optimization_stage() == 3
        super().__init__(job, parts, in_step=is_sharded and dist.get_world_size() > 1)
        if engine.bfloat16_enabled() and not isinstance(job.weights, Unfilled):
            self._partitions.fill(job.weights)

    def forward_backward(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Accumulates the step's gradient; one packed all-reduce brings loss terms and each rank's loss together."""
        local = self._run(step, micro_batches, counts)
        return self._ranks.totals(local)[0]

    def optimizer_step(self, plan: StepPlan) -> StepStats:
        """Clips and applies the gradient; DeepSpeed itself skips a step whose norm is not finite, which it reads from the device."""
        self._zero.clip_grad = plan.max_norm or 0.0
        self._set_rates(plan.lr_scale)
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float64, device=self.device)
        applied = torch.tensor(self._engine.was_step_applied(), device=self.device)
        return StepStats(grad_norm=norm, applied=applied, rank_losses=self._ranks.losses)

    def state(self) -> dict[str, Tensor]:
        """The live tensors by neutral name, each rank's range of them."""
        return self._partitions.state()

    def load_state(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Lets ``read`` fill the live tensors in place, and brings them into the model."""
        state = self._partitions.state()
        read(state)
        self._partitions.take(state)

    def files(self) -> dict[str, dict[str, Any]]:
        """DeepSpeed's configuration."""
        return {"deepspeed.json": self._settings}

    def close(self) -> None:
        """Drops the model and the optimizer, and the hooks that DeepSpeed has put into them."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        self._engine.destroy()
        FWD_MODULE_STACK.clear()
        self._told.close()
        super().close()
        del self._engine, self._zero, self._partitions

    def _backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        first, *others = (root * gradient for root, gradient in zip(roots, gradients, strict=True))
        self._engine.backward(sum(others, start=first), scale_wrt_gas=False)

    def _accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def _kept_dtypes(self) -> dict[str, str]:
        return self._partitions.dtypes()


def _fill_sharded(deepspeed: Any, job: EngineJob, settings: dict[str, Any], tied: dict[str, str]) -> torch.optim.Optimizer:
    """Gives every parameter its first value and spreads it over the ranks, before the next one gets memory.

    Returns:
        The optimizer over them; it was built before, while their shapes, by which it groups them, could be seen.
    """
    model, dtype, filled = job.skeleton.model, DTYPES[job.precision.compute], {}
    optimizer = job.make_optimizer(named_owners(model))
    # Given a type too, it takes bf16 for what it swaps wherever a device has no fp16.
    spread = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)
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
    before = {name: os.environ.get(name) for name in ("LOCAL_RANK", "LOCAL_SIZE")}
    os.environ["LOCAL_RANK"] = str(device.index or 0) if device.type == "cuda" else before["LOCAL_RANK"] or "0"
    if device.type == "cpu":
        # How many devices there are: nothing on a CPU depends on it, but for each bucket stage 3 would start ``numactl`` to count them.
        os.environ["LOCAL_SIZE"] = before["LOCAL_SIZE"] or "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _with_scratch(settings: dict[str, Any], told: ExitStack) -> dict[str, Any]:
    """DeepSpeed's JSON with a folder of this rank's own for what it swaps, which goes with the engine."""
    swapped = {key: value for key, value in settings["zero_optimization"].items() if is_swapped(value)}
    if not swapped:
        return settings
    scratch = Scratch(Path(next(iter(swapped.values()))["nvme_path"]).expanduser())
    told.callback(scratch.remove)
    own = {key: value | {"nvme_path": str(scratch.path)} for key, value in swapped.items()}
    return settings | {"zero_optimization": settings["zero_optimization"] | own}


def zero_problems(settings: dict[str, Any], load: Load, device: torch.device) -> list[str]:
    """What cannot work of ``zero_optimization`` of DeepSpeed's JSON, a sentence each, and what it says against it itself.

    What DeepSpeed has to compile for it is compiled here: before ranks meet, none waits for another that compiles longer than it may.
    """
    _import_deepspeed(device)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    zero = settings["zero_optimization"]
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        told = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        return [f"strategy.deepspeed: DeepSpeed refuses zero_optimization.{key}: {message}." for key, message in told]
    problems = list(swap_problems(zero, load)) if any(map(is_swapped, zero.values())) else []
    builders = _builders(zero)
    problems += [problem for builder in builders if (problem := builds.problem(builder))]
    return problems or [problem for builder in builders if (problem := builds.load(builder))]


def _builders(zero: dict[str, Any]) -> list[Any]:
    """Of the operations that DeepSpeed compiles for what its JSON wants, in their order; not those that were installed with it."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops

    names = ["PinMemoryBuilder", "AsyncIOBuilder"] if any(map(is_swapped, zero.values())) else []
    if zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients"):
        names.append("QuantizerBuilder")
    builders = [get_accelerator().create_op_builder(name) for name in names]
    return [builder for builder in builders if not installed_ops.get(builder.name)]


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
