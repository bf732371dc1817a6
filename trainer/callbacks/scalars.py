"""What trackers draw curves of."""

from __future__ import annotations

from trainer.types import Evaluation, StepRecord

_CURVES = (
    "loss",
    "grad_norm",
    "lr",
    "num_targets",
    "tokens_per_second",
    "slots_per_second",
    "mfu",
    "mfu_causal",
    "peak_memory_bytes",
    "bubble",
)


def of_step(record: StepRecord) -> dict[str, float]:
    """The numbers of a training step, by the name of their curve."""
    seconds = {f"seconds/{phase}": value for phase, value in record.seconds.items()}
    return {f"train/{name}": value for name in _CURVES if (value := getattr(record, name)) is not None} | seconds


def of_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """The held-out metrics, by the name of their curve."""
    return {f"evaluate/{name}": value for name, value in evaluation.metrics.items()}
