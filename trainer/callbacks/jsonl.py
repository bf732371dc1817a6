"""Writes ``metrics.jsonl``."""

from __future__ import annotations

from trainer.metrics import MetricsFile
from trainer.types import Evaluation, StepRecord


class JsonLines:
    """One line per step at full precision, one per evaluation, one per checkpoint.

    Args:
        file: where they go; the run makes it durable before each checkpoint.
    """

    def __init__(self, file: MetricsFile):
        self._file = file

    def on_log(self, records: list[StepRecord]) -> None:
        """Appends the steps."""
        for record in records:
            self._file.append({"kind": "train", **vars(record)})
        self._file.flush()

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """Appends the evaluation."""
        line = {"kind": "evaluate", "step": evaluation.step, **evaluation.metrics, "num_targets": evaluation.num_targets}
        if evaluation.examples:
            line["examples"] = [{"written": written, "reference": reference} for written, reference in evaluation.examples]
        self._file.append(line)
        self._file.flush()

    def on_save(self, step: int, folder: str) -> None:
        """Nothing: a checkpoint is its own record."""

    def on_end(self) -> None:
        """Makes the last lines durable."""
        self._file.sync()
