"""Keeps ``run.dir/report.html`` up to date, at most for a hundredth of the time, and never at the price of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoint.files import write_atomically
from trainer.distributed.log import LOGGER
from trainer.report.folder import read_run
from trainer.report.history import History
from trainer.report.single import report
from trainer.types import Evaluation, StepRecord

REPORT = "report.html"
_SHARE = 0.01
_FIRST_GUESS_SECONDS = 0.3


class RunReport:
    """Writes the report after checkpoints, and at the end when it is told to.

    Args:
        folder: ``run.dir``.
        defaults: what each key of a config is by default, given the schema of each group.
        warn: says a sentence; called once at most.
    """

    def __init__(self, folder: Path, defaults: Callable[[Mapping[str, str]], Mapping[str, Any]], warn: Callable[[str], None]):
        self._folder, self._defaults, self._warn = folder, defaults, warn
        self._history = History(folder / "metrics.jsonl")
        self._written_at, self._took = time.monotonic(), _FIRST_GUESS_SECONDS
        self._warned = False

    def on_log(self, records: list[StepRecord]) -> None:
        """Nothing: the report is drawn from ``metrics.jsonl``."""

    def on_evaluate(self, evaluation: Evaluation) -> None:
        """Nothing."""

    def on_save(self, step: int, folder: str) -> None:
        """Writes the report if that is little beside the time since it was written last."""
        if self._took <= _SHARE * (time.monotonic() - self._written_at):
            self.write()

    def on_end(self) -> None:
        """Nothing: how the run ends is not known yet."""

    def write(self) -> None:
        """Writes the report of what is in the folder, once a step is on record; what goes wrong is said, once."""
        began = time.monotonic()
        try:
            run = read_run(self._folder, self._history)
            if run.history.num_steps:
                write_atomically(self._folder / REPORT, report(run, self._defaults(run.options)))
        except FileNotFoundError:
            return  # there is no metrics.jsonl yet
        except Exception as error:  # a picture is worth no run
            LOGGER.exception("no report")
            if not self._warned:
                self._warn(
                    f"{self._folder / REPORT} is not written ({type(error).__name__}: {error}); isotrain report {self._folder} draws it."
                )
            self._warned = True
        self._written_at = time.monotonic()
        self._took = self._written_at - began
