"""ZeRO on DeepSpeed: what the user sets, and DeepSpeed's own JSON derived from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainer.distributed.degrees import Degrees
from trainer.schema import setting
from trainer.strategy.support import combination_problem

if TYPE_CHECKING:
    import torch

    from trainer.protocols import Engine, EngineJob

INSTALL = "pip install 'isotrain[deepspeed]'"


@dataclass
class ZeroStrategy:
    """ZeRO (Rajbhandari et al., 2020) under DeepSpeed: moments (1), gradients (2) and parameters (3) are spread over all ranks."""

    name: str = setting("zero", "what this preset is called in messages")
    stage: int = setting(
        2, "what is spread: 1 moments and masters, 2 gradients too, 3 parameters too", minimum=1, maximum=3, aliases=("zero_stage",)
    )
    offload_optimizer: str | None = setting(
        None, "where masters and moments are kept instead of on the device: cpu", choices=("cpu",), aliases=("cpu_offload",)
    )
    offload_parameters: str | None = setting(
        None, "stage 3: where parameters are kept between uses: cpu", choices=("cpu",), aliases=("offload_param",)
    )
    secondary_shard: int = setting(
        1,
        "stage 3: ranks of one machine over which a second copy of the parameters lies, for the backward (ZeRO++ hpZ); 1: none",
        minimum=1,
        aliases=("zero_hpz_partition_size", "hpz"),
    )
    quantized_weights: bool = setting(False, "stage 3: gather parameters as int8 (ZeRO++ qwZ); changes the loss")
    quantized_gradients: bool = setting(False, "stage 3: reduce gradients as int4 (ZeRO++ qgZ); changes the loss")
    bucket_elements: int = setting(
        50_000_000, "numbers that are reduced, or gathered, at a time", minimum=1, aliases=("reduce_bucket_size", "allgather_bucket_size")
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
        yield from _overlay_problems(self.deepspeed, self._owned("fp32", "fp32", 1, 1, None))

    def device_problems(self, device: torch.device) -> list[str]:
        """What cannot work on this rank's ``device``, and what DeepSpeed itself does not understand of ``strategy.deepspeed``."""
        quantized = [name for name in ("quantized_weights", "quantized_gradients") if getattr(self, name)]
        reason = "needs a GPU, because DeepSpeed quantizes on no other device: set it to false."
        problems = [f"strategy.{name}=true {reason}" for name in quantized] if device.type == "cpu" else []
        if self.deepspeed:
            from trainer.engine.deepspeed import zero_problems

            problems += zero_problems(self.settings("fp32", "fp32", 1, 1, None), device)
        return problems

    def settings(self, compute: str, reduce: str, micro_batch: int, accumulation: int, max_norm: float | None) -> dict[str, Any]:
        """DeepSpeed's configuration: what we own, with ``strategy.deepspeed`` laid over.

        Args:
            compute, reduce: the precision policy's types.
            micro_batch: samples per forward on one rank.
            accumulation: most micro-batches per step on one rank.
            max_norm: to which gradients are clipped; written always, because DeepSpeed would clip to 1.0 by itself.
        """
        return _laid_over(self._owned(compute, reduce, micro_batch, accumulation, max_norm), self.deepspeed)

    def _owned(self, compute: str, reduce: str, micro_batch: int, accumulation: int, max_norm: float | None) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": max_norm or 0.0,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "communication_data_type": reduce,
            "data_types": {"grad_accum_dtype": "fp32"},
            "bf16": {"enabled": compute == "bf16", "check_grad_overflow": True},
            "zero_optimization": self._zero(),
        }

    def _zero(self) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.bucket_elements,
            "allgather_bucket_size": self.bucket_elements,
            "overlap_comm": self.overlap_communication,
        }
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": self.offload_optimizer}
        if self.stage == 3:
            zero |= {
                "zero_hpz_partition_size": self.secondary_shard,
                "zero_quantized_weights": self.quantized_weights,
                "zero_quantized_gradients": self.quantized_gradients,
                "stage3_prefetch_bucket_size": self.bucket_elements,
            }
            if self.offload_parameters:
                zero["offload_param"] = {"device": self.offload_parameters}
        return zero

    def build(self, job: EngineJob) -> Engine:
        """Builds the DeepSpeed engine around the job's skeleton."""
        from trainer.engine.deepspeed import build_deepspeed

        return build_deepspeed(
            job, self.settings(job.precision.compute, job.precision.reduce, job.micro_batch, job.accumulation, job.max_norm)
        )


def _laid_over(owned: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    laid = dict(owned)
    for key, value in more.items():
        laid[key] = _laid_over(laid[key], value) if isinstance(laid.get(key), dict) and isinstance(value, dict) else value
    return laid


_SETTINGS = {
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "managed_gradient_accumulation": "train.global_batch and train.micro_batch",
    "gradient_clipping": "optimizer.max_grad_norm",
    "steps_per_print": "train.log_every",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "communication_data_type": "precision.reduce",
    "checkpoint": "checkpoint",
    "tensor_parallel": "strategy",
    "zero_optimization.cpu_offload": "strategy.offload_optimizer",
    "zero_optimization.cpu_offload_param": "strategy.offload_parameters",
    "zero_optimization.compute_grad_norm": "the gate on the gradient norm",
    "zero_optimization.stage": "strategy=zero1, zero2 or zero3",
    "zero_optimization.offload_optimizer": "strategy.offload_optimizer",
    "zero_optimization.offload_param": "strategy.offload_parameters",
    "zero_optimization.reduce_bucket_size": "strategy.bucket_elements",
    "zero_optimization.allgather_bucket_size": "strategy.bucket_elements",
    "zero_optimization.stage3_prefetch_bucket_size": "strategy.bucket_elements",
    "zero_optimization.overlap_comm": "strategy.overlap_communication",
    "zero_optimization.zero_hpz_partition_size": "strategy.secondary_shard",
    "zero_optimization.zero_quantized_weights": "strategy.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "strategy.quantized_gradients",
}
"""The setting of ours that owns a key of DeepSpeed's."""


_OTHERS = ("aio", "comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "wall_clock_breakdown")
"""What else of DeepSpeed's own changes no result and has no setting of ours."""


def _overlay_problems(more: dict[str, Any], owned: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in more.items():
        dotted = f"{path}{key}"
        if dotted in _SETTINGS:
            yield f"strategy.deepspeed sets {dotted}, which {_SETTINGS[dotted]} decides: set that instead."
        elif key in owned and isinstance(value, dict) and isinstance(owned[key], dict):
            yield from _overlay_problems(value, owned[key], f"{dotted}.")
        elif key in owned:
            yield f"strategy.deepspeed sets {dotted}, which is derived and cannot be changed."
        elif not path and key not in _OTHERS:
            yield f"strategy.deepspeed sets {key}; of DeepSpeed's keys only zero_optimization, {', '.join(_OTHERS)} may be added to."
