"""ZeRO on DeepSpeed: what the user sets, and DeepSpeed's own JSON derived from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainer.distributed.degrees import Degrees
from trainer.schema import setting
from trainer.strategy.overlay import laid_over, overlay_problems
from trainer.strategy.support import combination_problem

if TYPE_CHECKING:
    import torch

    from trainer.distributed.launch import Launch
    from trainer.model.skeleton import Skeleton
    from trainer.precision.config import Precision
    from trainer.protocols import Engine, EngineJob

INSTALL = "pip install 'isotrain[deepspeed]'"


@dataclass(frozen=True)
class Facts:
    """What else decides DeepSpeed's configuration, from other groups and the model.

    Attributes:
        compute, reduce: the precision policy's types.
        micro_batch: samples per forward on one rank.
        accumulation: most micro-batches per step on one rank.
        max_norm: to which gradients are clipped; written always, because DeepSpeed would clip to 1.0 by itself.
        largest_part: the most elements that one rank holds of a parameter.
    """

    compute: str = "fp32"
    reduce: str = "fp32"
    micro_batch: int = 1
    accumulation: int = 1
    max_norm: float | None = None
    largest_part: int = 1


@dataclass
class ZeroStrategy:
    """ZeRO (Rajbhandari et al., 2020) under DeepSpeed: moments (1), gradients (2) and parameters (3) are spread over all ranks."""

    name: str = setting("zero", "what this preset is called in messages")
    stage: int = setting(
        2, "what is spread: 1 moments and masters, 2 gradients too, 3 parameters too", minimum=1, maximum=3, aliases=("zero_stage",)
    )
    offload_optimizer: str | None = setting(
        None,
        "where masters and moments are kept instead of on the device: cpu, or under stage 3 nvme",
        choices=("cpu", "nvme"),
        aliases=("cpu_offload",),
    )
    offload_parameters: str | None = setting(
        None, "stage 3: where parameters are kept between uses: cpu or nvme", choices=("cpu", "nvme"), aliases=("offload_param",)
    )
    nvme_path: str | None = setting(None, "a folder on a fast disk of each machine, for what is offloaded to nvme")
    secondary_shard: int = setting(
        1,
        "stage 3: ranks of one machine over which a second copy of the parameters lies, for the backward (ZeRO++ hpZ); 1: none",
        minimum=1,
        aliases=("zero_hpz_partition_size", "hpz"),
    )
    quantized_weights: bool = setting(False, "stage 3: gather parameters as int8 (ZeRO++ qwZ); changes the loss")
    quantized_gradients: bool = setting(False, "stage 3: reduce gradients as int4 (ZeRO++ qgZ); changes the loss")
    bucket_elements: int = setting(
        50_000_000,
        "numbers that are reduced, gathered, or swapped to nvme at a time",
        minimum=1,
        aliases=("reduce_bucket_size", "allgather_bucket_size"),
    )
    overlap_communication: bool = setting(True, "reduce gradients while the backward goes on", aliases=("overlap_comm",))
    deepspeed: dict[str, Any] = setting(
        {}, "keys of DeepSpeed's own JSON that no setting here stands for, such as {zero_optimization: {round_robin_gradients: true}}"
    )

    def degrees(self, world_size: int) -> Degrees:
        """All ranks share one copy of what is spread."""
        return Degrees(replicate=1, shard=world_size)

    def check(self, world_size: int | None, precision: str, objective: str | None, family: str | None) -> list[str]:
        """What cannot work, one sentence each, before torch is imported."""
        problems = list(self._problems(world_size))
        if problem := combination_problem(f"zero{self.stage}", precision, objective, family):
            problems.append(problem)
        return problems

    def _problems(self, world_size: int | None) -> Iterator[str]:
        if find_spec("deepspeed") is None:
            yield f"strategy={self.name} needs deepspeed, which is not installed: {INSTALL}."
        for name in ("offload_parameters", "quantized_weights", "quantized_gradients"):
            if getattr(self, name) and self.stage < 3:
                value = str(getattr(self, name)).lower()
                yield f"strategy.{name}={value} needs stage 3, which alone spreads parameters: did you mean strategy=zero3?"
        if self.secondary_shard > 1 and self.stage < 3:
            yield f"strategy.secondary_shard={self.secondary_shard} needs stage 3: did you mean strategy=zero3?"
        if world_size is not None and world_size % self.secondary_shard:
            yield f"strategy.secondary_shard={self.secondary_shard} does not divide the {world_size} ranks of this run: use a divisor of {world_size}."
        yield from self._nvme_problems()
        yield from overlay_problems(self.deepspeed, self._owned(Facts()))

    def _nvme_problems(self) -> Iterator[str]:
        swapped = [name for name in ("offload_optimizer", "offload_parameters") if getattr(self, name) == "nvme"]
        if self.offload_optimizer == "nvme" and self.stage < 3:
            yield "strategy.offload_optimizer=nvme needs stage 3, which alone swaps: use cpu, or strategy=zero3."
        if swapped and self.nvme_path is None:
            yield f"strategy.{swapped[0]}=nvme needs strategy.nvme_path, a folder on a fast disk of each machine."
        if self.nvme_path is not None and not swapped:
            yield f"strategy.nvme_path={self.nvme_path} is used by nothing: add strategy.offload_optimizer=nvme, or leave it out."

    def problems(self, skeleton: Skeleton, precision: Precision, launch: Launch, device: torch.device) -> list[str]:
        """What cannot work on this rank's ``device``, and what DeepSpeed itself does not understand of ``strategy.deepspeed``."""
        quantized = [name for name in ("quantized_weights", "quantized_gradients") if getattr(self, name)]
        reason = "needs a GPU, because DeepSpeed quantizes on no other device: set it to false."
        problems = [f"strategy.{name}=true {reason}" for name in quantized] if device.type == "cpu" else []
        if not problems and (self.deepspeed or self.nvme_path or quantized):
            from trainer.engine.deepspeed import zero_problems
            from trainer.engine.swapping import Load
            from trainer.precision.dtypes import DTYPES

            width, part = DTYPES[precision.compute].itemsize, _largest_part(skeleton, launch.world_size)
            load = Load(skeleton.num_parameters, part, launch.world_size, launch.local_world_size, width)
            problems += zero_problems(self.settings(Facts(compute=precision.compute, largest_part=part)), load, device)
        return problems

    def settings(self, facts: Facts) -> dict[str, Any]:
        """DeepSpeed's configuration: what we own, with ``strategy.deepspeed`` laid over."""
        return laid_over(self._owned(facts), self.deepspeed)

    def _owned(self, facts: Facts) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": facts.micro_batch,
            "gradient_accumulation_steps": facts.accumulation,
            "gradient_clipping": facts.max_norm or 0.0,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "communication_data_type": facts.reduce,
            "data_types": {"grad_accum_dtype": "fp32"},
            "bf16": {"enabled": facts.compute == "bf16", "check_grad_overflow": True},
            "zero_optimization": self._zero(facts),
        }

    def _zero(self, facts: Facts) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.bucket_elements,
            "allgather_bucket_size": self.bucket_elements,
            "overlap_comm": self.overlap_communication,
        }
        if self.offload_optimizer:
            zero["offload_optimizer"] = self._offload(self.offload_optimizer)
        if self.stage == 3:
            zero |= {
                "zero_hpz_partition_size": self.secondary_shard,
                "zero_quantized_weights": self.quantized_weights,
                "zero_quantized_gradients": self.quantized_gradients,
                "stage3_prefetch_bucket_size": self.bucket_elements,
                "memory_efficient_linear": False,  # trainer.engine.gathered has one that rounds as torch's does
            }
            if "nvme" in (self.offload_optimizer, self.offload_parameters):
                zero["sub_group_size"] = self.bucket_elements
            if self.offload_parameters:
                zero["offload_param"] = self._offload(self.offload_parameters)
            if self.offload_parameters == "nvme":  # none of them is kept in memory, and a buffer holds the largest
                zero["offload_param"] |= {"max_in_cpu": 0, "buffer_size": facts.largest_part}
        return zero

    def _offload(self, to: str) -> dict[str, Any]:
        return {"device": to, "nvme_path": self.nvme_path} if to == "nvme" else {"device": to}

    def build(self, job: EngineJob) -> Engine:
        """Builds the DeepSpeed engine around the job's skeleton."""
        from trainer.engine.deepspeed import build_deepspeed

        part = _largest_part(job.skeleton, job.mesh.size())
        facts = Facts(job.precision.compute, job.precision.reduce, job.micro_batch, job.accumulation, job.max_norm, part)
        return build_deepspeed(job, self.settings(facts))


def _largest_part(skeleton: Skeleton, world_size: int) -> int:
    return max(-(-parameter.numel() // world_size) for parameter in skeleton.model.parameters())
