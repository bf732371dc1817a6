"""The native strategies: one dataclass of mesh degrees, of which single, ddp, fsdp and hsdp are presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.distributed.degrees import Degrees, ranks, resolve
from trainer.errors import Refused
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
    """How ranks divide the work under torch.distributed. Ranks = replicate x shard x tensor."""

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
        """What the settings amount to, whatever the preset is called: single, ddp, fsdp, hsdp or tensor."""
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
        return resolve({"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}, world_size)

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
        if self.sequence_parallel and degree == 1:
            problems.append(
                "strategy.sequence_parallel=true splits sequences over the tensor ranks, but there is 1: "
                "set strategy.tensor=2 or more, or strategy.sequence_parallel=false."
            )
        return problems

    def problems(self, skeleton: Skeleton, precision: Precision, launch: Launch, device: torch.device) -> list[str]:
        """What of the model cannot be divided so."""
        from trainer.parallel.tensor import tensor_problems

        degree = self.degrees(launch.world_size).tensor
        return tensor_problems(skeleton, degree, self.sequence_parallel) if degree > 1 else []

    def build(self, job: EngineJob) -> Engine:
        """Parallelizes the job's skeleton and builds the native engine around it."""
        from trainer.engine.native import NativeEngine
        from trainer.parallel.layout import Layout
        from trainer.parallel.parallelize import parallelize

        layout = Layout(
            self.fully_shard,
            self.reshard_after_forward,
            self.cpu_offload,
            self.reduce_every_micro_batch,
            self.bucket_mb,
            self.sequence_parallel,
        )
        return NativeEngine(job, parallelize(job, layout))
