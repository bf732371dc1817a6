"""TensorBoard: ``tensorboard --logdir runs`` shows every run below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.callbacks.scalars import of_evaluation, of_step
from trainer.types import Evaluation, StepRecord


class TensorBoard:
    """Writes event files; those of a resumed run hide what an earlier session wrote after the checkpoint.

    Args:
        folder: where they lie.
        done: steps before this session.
        config: the run's, as YAML.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, done: int, config: str):
        from torch.utils.tensorboard import (
            SummaryWriter,  # in the main thread: loader workers are forked later, when no import may be under way
        )

        self._make, self._folder, self._done, self._config = SummaryWriter, folder, done, config
        self._writer: Any = None

    def open(self) -> None:
        """Opens a file."""
        self._writer = self._make(str(self._folder), purge_step=self._done + 1)
        self._writer.add_text("config", f"```yaml\n{self._config}\n```", self._done)

    def step(self, record: StepRecord) -> None:
        """A point of each curve."""
        for name, value in of_step(record).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def evaluation(self, evaluation: Evaluation) -> None:
        """A point of each held-out curve, and what the model wrote."""
        for name, value in of_evaluation(evaluation).items():
            self._writer.add_scalar(name, value, evaluation.step)
        for number, (written, reference) in enumerate(evaluation.examples):
            self._writer.add_text(f"written/{number}", f"**model** {written}\n\n**truth** {reference}", evaluation.step)
        if evaluation.sample:
            self._writer.add_text("sample", evaluation.sample[1], evaluation.step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
