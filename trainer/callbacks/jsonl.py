"""Writes ``metrics.jsonl``."""

from __future__ import annotations

from typing import Any

from trainer.metrics import MetricsFile
from trainer.types import Evaluation, StepRecord


class JsonLines:
    """One line per step at full precision, one per evaluation, one per text that was written.

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
        if evaluation.sample:
            self._file.append(sample_line(evaluation.step, *evaluation.sample))
        self._file.flush()

    def on_save(self, step: int, folder: str) -> None:
        """Nothing: a checkpoint is its own record."""

    def on_end(self) -> None:
        """Makes the last lines durable."""
        self._file.sync()


def sample_line(step: int, prompt: str, text: str) -> dict[str, Any]:
    """The line of a text that a decoder wrote after ``step``: the prompt, and the prompt with what comes after it."""
    return {"kind": "sample", "step": step, "prompt": prompt, "text": text}
