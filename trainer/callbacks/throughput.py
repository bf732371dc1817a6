"""How fast a run is: labels and slots per second, and how much of the device's peak the model's arithmetic is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from trainer.distributed.log import LOGGER
from trainer.model.flops import FORMULA, FORMULA_CAUSAL, Flops
from trainer.types import Batch

_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)
"""Dense bf16 operations per second of a device whose name holds the first, by NVIDIA's data sheets; more special names first."""


def peak_of(device: str, compute: str) -> float | None:
    """The peak of a device for a compute type, in operations per second; None where it is not known.

    Args:
        device: its name, as torch gives it.
        compute: ``bf16``: of others there is no one number (fp32 may or may not go through TF32).
    """
    words = f" {device.replace('-', ' ')} "
    return next((peak for name, peak in _PEAKS if f" {name} " in words), None) if compute == "bf16" else None


def peak_fact(device: str, compute: str) -> str | None:
    """What MFU is measured by, in words; None where there is no MFU."""
    peak = peak_of(device, compute)
    return None if peak is None else f"of {peak / 1e12:,.0f} TFLOP/s ({device}, dense bf16): {FORMULA}; mfu_causal: {FORMULA_CAUSAL}"


@dataclass
class Throughput:
    """Counts what the steps of a log interval are made of; nothing is read from a device.

    Attributes:
        flops: of the model.
        global_batch: samples of a step.
        data_size: ranks that see different samples.
        world_size: all ranks.
        peak: operations per second of one device; None: not known.
    """

    flops: Flops
    global_batch: int
    data_size: int
    world_size: int
    peak: float | None
    _steps: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def add(self, micro_batches: list[Batch]) -> None:
        """A step's micro-batches, all of one shape, on all ranks."""
        inputs = micro_batches[0].inputs
        (rows, width), target = inputs["input_ids"].shape, inputs.get("decoder_input_ids")
        self._steps[len(micro_batches) * rows, width, 0 if target is None else target.shape[1]] += 1

    def read(self, labels: int, seconds: float) -> dict[str, Any]:
        """The fields of a record (trainer.types.StepRecord) for the steps since the last call."""
        steps, self._steps = self._steps, Counter()
        seconds = max(seconds, 1e-9)
        slots = self.data_size * sum(times * rows * (width + target_width) for (rows, width, target_width), times in steps.items())
        of_widths = [self.flops.step(times * self.global_batch, width, target, 0) for (_, width, target), times in steps.items()]
        of_labels = labels * self.flops.label
        full, causal = (
            None if self.peak is None else (sum(column) + of_labels) / (seconds * self.peak * self.world_size)
            for column in zip(*of_widths, strict=True)
        )
        if full is not None and full > 1:
            LOGGER.error("MFU of %.0f %%: the peak or the count of operations is wrong for this device; please report it", 100 * full)
            full = causal = None
        return {"tokens_per_second": labels / seconds, "slots_per_second": slots / seconds, "mfu": full, "mfu_causal": causal}
