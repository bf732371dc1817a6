"""``strategy.deepspeed``: keys of DeepSpeed's own JSON that no setting of ours stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def laid_over(owned: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """``more`` laid over ``owned``, section by section."""
    laid = dict(owned)
    for key, value in more.items():
        laid[key] = laid_over(laid[key], value) if isinstance(laid.get(key), dict) and isinstance(value, dict) else value
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


def overlay_problems(more: dict[str, Any], owned: dict[str, Any], path: str = "") -> Iterator[str]:
    """What ``more`` may not say, a sentence each: what a setting of ours, or ``owned``, decides."""
    for key, value in more.items():
        dotted = f"{path}{key}"
        if dotted in _SETTINGS:
            yield f"strategy.deepspeed sets {dotted}, which {_SETTINGS[dotted]} decides: set that instead."
        elif key in owned and isinstance(value, dict) and isinstance(owned[key], dict):
            yield from overlay_problems(value, owned[key], f"{dotted}.")
        elif key in owned:
            yield f"strategy.deepspeed sets {dotted}, which is derived and cannot be changed."
        elif not path and key not in _OTHERS:
            yield f"strategy.deepspeed sets {key}; of DeepSpeed's keys only zero_optimization, {', '.join(_OTHERS)} may be added to."
