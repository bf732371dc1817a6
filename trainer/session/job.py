"""What is known of a run before its ranks meet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from rich.console import Console

from trainer.config import Config, to_yaml
from trainer.data.prepare import Corpus
from trainer.distributed.launch import Launch
from trainer.model.skeleton import Skeleton
from trainer.protocols import Weights
from trainer.types import Context


@dataclass(frozen=True)
class Job:
    """A validated configuration and what was built from it on every rank alone.

    Attributes:
        config: typed and checked.
        launch: who this rank is.
        corpus: prepared.
        skeleton: the model on meta, until the engine fills it.
        weights: its first values, not yet drawn or read.
        context: what the objective may know when it collates.
        device: this rank's.
        console: prints on rank 0 only.
    """

    config: Config
    launch: Launch
    corpus: Corpus
    skeleton: Skeleton
    weights: Weights
    context: Context
    device: torch.device
    console: Console

    @cached_property
    def written_config(self) -> str:
        """``config`` as YAML: what ``config.yaml`` says, of the run and of each checkpoint. Composing it takes as long as some steps."""
        return to_yaml(self.config)

    def say(self, line: str) -> None:
        """Shows one line to the user, unbroken."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
