"""How fast a run is: labels and slots per second, and how much of the device's peak the model's arithmetic is."""

from __future__ import annotations

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
    _shapes: list[tuple[int, int]] = field(default_factory=list)
    _slots: int = 0

    def add(self, micro_batches: list[Batch]) -> None:
        """A step's micro-batches, which have the same shape on all ranks."""
        inputs = micro_batches[0].inputs
        width, target = inputs["input_ids"].shape[1], inputs.get("decoder_input_ids")
        rows = sum(len(batch.inputs["input_ids"]) for batch in micro_batches) * self.data_size
        target_width = 0 if target is None else target.shape[1]
        self._slots += rows * (width + target_width)
        self._shapes.append((width, target_width))

    def read(self, labels: int, seconds: float) -> dict[str, Any]:
        """The fields of a record (trainer.types.StepRecord) for the steps since the last call."""
        shapes, slots = self._shapes, self._slots
        self._shapes, self._slots = [], 0
        seconds = max(seconds, 1e-9)
        per_step = [self.flops.step(self.global_batch, width, target_width, 0) for width, target_width in shapes]
        of_labels = labels * self.flops.label
        full, causal = (
            None if self.peak is None else (sum(column) + of_labels) / (seconds * self.peak * self.world_size)
            for column in zip(*per_step, strict=True)
        )
        if full is not None and full > 1:
            LOGGER.error("MFU of %.0f %%: the peak or the count of operations is wrong for this device; please report it", 100 * full)
            full = causal = None
        return {"tokens_per_second": labels / seconds, "slots_per_second": slots / seconds, "mfu": full, "mfu_causal": causal}
