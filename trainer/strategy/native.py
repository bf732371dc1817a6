"""The native strategies: one dataclass of mesh degrees, of which single, ddp, fsdp and hsdp are presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.distributed.degrees import AXES, Degrees, ranks, resolve
from trainer.errors import Refused
from trainer.parallel.stages import Stages, plan_stages, problems_of_schedule
from trainer.schema import setting
from trainer.strategy.support import combination_problem, setting_problems

if TYPE_CHECKING:
    import torch

    from trainer.distributed.launch import Launch
    from trainer.model.skeleton import Skeleton
    from trainer.precision.config import Precision
    from trainer.protocols import Engine, EngineJob


@dataclass
class NativeStrategy:
    """How ranks divide the work under torch.distributed. Ranks = pipeline x replicate x shard x tensor."""

    name: str = setting("native", "what this preset is called in messages")
    replicate: int | None = setting(
        1, "ranks that hold copies of the same shard; None: all that shard leaves over", minimum=1, aliases=("dp_replicate", "ddp_size")
    )
    shard: int | None = setting(
        1,
        "ranks over which one copy of parameters, gradients and moments is spread; None: all that replicate leaves over, or all",
        minimum=1,
        aliases=("dp_shard", "fsdp_size"),
    )
    tensor: int | None = setting(
        1,
        "ranks over which each block's heads and hidden units, and the vocabulary, are split; None: all that the others leave over",
        minimum=1,
        aliases=("tensor_parallel_degree", "tensor_model_parallel_size", "tp_size", "tp"),
    )
    pipeline: int | None = setting(
        1,
        "ranks, or groups of them, over which blocks are laid one after the other; None: all that the others leave over",
        minimum=1,
        aliases=("pipeline_parallel_degree", "pipeline_model_parallel_size", "pp_size", "pp"),
    )
    schedule: str = setting(
        "1f1b",
        "in which order a pipeline's stages take micro-batches forward and backward",
        choices=("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv"),
        aliases=("pipeline_schedule", "pp_schedule"),
    )
    stages_per_rank: int | None = setting(
        None, "stages of a pipeline on each rank; None: 2 for schedules that take turns, else 1", minimum=1, aliases=("virtual_stages",)
    )
    blocks_per_stage: list[int] | None = setting(None, "how many blocks each stage has, in order; None: balanced by memory and arithmetic")
    whole_model_gib: float = setting(
        8.0, "with a pipeline: the largest model, as fp32, that is put together on every rank to write samples", minimum=0.0
    )
    sequence_parallel: bool = setting(
        False,
        "split activations along the sequence over the tensor ranks wherever they are not split by heads or hidden units: less memory",
        aliases=("sp", "tp_sp"),
    )
    fully_shard: bool = setting(False, "shard parameters, gradients and moments (FSDP2) over the shard axis")
    reshard_after_forward: bool = setting(True, "free gathered parameters between forward and backward: less memory, one more all-gather")
    cpu_offload: bool = setting(False, "keep sharded parameters, gradients and moments in host memory")
    reduce_every_micro_batch: bool = setting(
        True,
        "reduce-scatter gradients after every micro-batch; false: keep them whole until the last one: fewer bytes on the wire, more memory",
    )
    bucket_mb: int = setting(25, "size of DDP's all-reduce buckets in MiB", minimum=1)

    @property
    def kind(self) -> str:
        """What the settings amount to, whatever the preset is called: single, ddp, fsdp, hsdp, tensor, pipeline or 3d."""
        if self.pipeline != 1:
            return "pipeline" if self.tensor == 1 else "3d"
        if self.tensor != 1:
            return "tensor"
        if self.fully_shard:
            return "fsdp" if self.replicate == 1 or (self.replicate is None and self.shard is None) else "hsdp"
        return "single" if self.replicate == 1 else "ddp"

    def degrees(self, world_size: int) -> Degrees:
        """How ``world_size`` ranks are divided.

        Raises:
            Refused: they cannot be, naming the degrees that were set.
        """
        if self.name == "single" and self.kind == "single" and self.shard == 1 and world_size > 1:
            raise Refused(f"strategy={self.name} runs on 1 rank, but this run has {ranks(world_size)}: did you mean strategy=ddp?")
        return resolve({axis: getattr(self, axis) for axis in AXES}, world_size)

    def check(self, world_size: int | None, precision: str, objective: str | None, family: str | None) -> list[str]:
        """What cannot work, one sentence each, before torch is imported.

        Args:
            world_size: number of ranks, or None where they are not known yet.
            precision: the compute type.
            objective: its name, or None for a plugin's.
            family: the model family, or None where it is not known yet or a plugin's.
        """
        if self.shard != 1 and not self.fully_shard:
            shard = "null" if self.shard is None else self.shard
            return [f"strategy.shard={shard} needs strategy.fully_shard=true: did you mean strategy=hsdp?"]
        problems = setting_problems(self, NativeStrategy())
        if problem := combination_problem(self.kind, precision, objective, family):
            problems.append(problem)
        degree = self.tensor
        if world_size is not None:
            try:
                degree = self.degrees(world_size).tensor
            except Refused as refused:
                problems += refused.problems
        if self.pipeline == 1:
            untouched = NativeStrategy()
            problems += [
                f"strategy.{name}={getattr(self, name)} has no effect without a pipeline: add strategy.pipeline=2 or more, or leave it out."
                for name in ("schedule", "stages_per_rank", "blocks_per_stage", "whole_model_gib")
                if getattr(self, name) != getattr(untouched, name)
            ]
        elif self.cpu_offload:
            problems.append("strategy.cpu_offload=true does not go with a pipeline yet: set it to false, or strategy.pipeline=1.")
        if self.sequence_parallel and self.pipeline != 1:
            problems.append("strategy.sequence_parallel=true does not go with a pipeline yet: set it to false, or strategy.pipeline=1.")
        elif self.sequence_parallel and degree == 1:
            problems.append(
                "strategy.sequence_parallel=true splits sequences over the tensor ranks, but there is 1: "
                "set strategy.tensor=2 or more, or strategy.sequence_parallel=false."
            )
        return problems

    def batch_problems(self, world_size: int, global_batch: int, micro_batch: int) -> list[str]:
        """What a pipeline's schedule cannot do with batches of this size, one sentence each."""
        try:
            degrees = self.degrees(world_size)
        except Refused:
            return []  # said already
        if degrees.pipeline == 1:
            return []
        micro_batches = -(-global_batch // (degrees.data * micro_batch))
        return problems_of_schedule(self.schedule, degrees.pipeline, self.stages_per_rank, micro_batches)

    def plan(self, skeleton: Skeleton, world_size: int) -> Stages | None:
        """Where the model is cut on so many ranks; None: there is no pipeline. Raises ``Refused`` where it cannot be cut so."""
        if (ranks := self.degrees(world_size).pipeline) == 1:
            return None
        from trainer.parallel.cutting import costs, places

        where = places(skeleton.model, skeleton.family)
        return plan_stages(costs(skeleton.model, where), ranks, self.schedule, self.stages_per_rank, self.blocks_per_stage)

    def _plan_problems(self, skeleton: Skeleton, world_size: int) -> list[str]:
        try:
            self.plan(skeleton, world_size)
        except Refused as refused:
            return refused.problems
        return []

    def whole_model_problem(self, skeleton: Skeleton, world_size: int) -> str | None:
        """Why the whole model cannot be had on every rank, to write with; None: it can."""
        size = 4 * skeleton.num_parameters / 2**30
        if self.degrees(world_size).pipeline == 1 or size <= self.whole_model_gib:
            return None
        return (
            f"to write, a pipeline puts the whole model together on every rank, {size:.1f} GiB, but strategy.whole_model_gib is "
            f"{self.whole_model_gib:g}: raise it, or export a checkpoint (isotrain export) and write with that"
        )

    def problems(self, skeleton: Skeleton, precision: Precision, launch: Launch, device: torch.device) -> list[str]:
        """What of the model cannot be divided so."""
        from trainer.parallel.cutting import pipeline_problems
        from trainer.parallel.tensor import tensor_problems

        degrees = self.degrees(launch.world_size)
        problems = tensor_problems(skeleton, degrees.tensor, self.sequence_parallel) if degrees.tensor > 1 else []
        if degrees.pipeline > 1:
            uncut = pipeline_problems(skeleton, self.schedule)
            problems += uncut or self._plan_problems(skeleton, launch.world_size)
        return problems

    def build(self, job: EngineJob) -> Engine:
        """Parallelizes the job's skeleton and builds the native engine around it."""
        from trainer.engine.native import NativeEngine
        from trainer.parallel.layout import Layout
        from trainer.parallel.parallelize import parallelize
        from trainer.parallel.staged import parallelize_stages

        layout = Layout(
            self.fully_shard,
            self.reshard_after_forward,
            self.cpu_offload,
            self.reduce_every_micro_batch,
            self.bucket_mb,
            self.sequence_parallel,
            self.plan(job.skeleton, job.mesh.size()),
            self.whole_model_problem(job.skeleton, job.mesh.size()),
        )
        return NativeEngine(job, (parallelize_stages if layout.stages else parallelize)(job, layout))
