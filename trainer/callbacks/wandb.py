"""Weights & Biases: one run per job, by an id that stays in ``run.dir``, so that a resumed run goes on in the same curves."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.callbacks.config import TrackConfig
from trainer.callbacks.scalars import of_evaluation, of_step
from trainer.types import Evaluation, StepRecord

_INIT_SECONDS = 12
_SETTINGS = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,  # the command line and the environment, which may hold secrets
    "x_disable_stats": True,
    "init_timeout": _INIT_SECONDS,
}


class WeightsAndBiases:
    """Sends curves to W&B, or keeps them in ``run.dir/wandb`` where there is no key or no way to it.

    Args:
        track: names project, entity and run.
        folder: ``run.dir``.
        config: the run's.
        say: says a sentence.
    """

    name = "W&B"

    def __init__(self, track: TrackConfig, folder: Path, config: dict[str, Any], say: Callable[[str], None]):
        import wandb  # in the main thread: loader workers are forked later, when no import may be under way

        self._wandb: Any = wandb
        self._track, self._folder, self._config, self._say = track, folder, config, say
        self._run: Any = None

    def open(self) -> None:
        """Begins the run, or goes on with it; offline, and saying so, where that is all that can be done."""
        self._folder.joinpath("wandb").mkdir(exist_ok=True)
        try:
            self._begin(os.environ.get("WANDB_MODE") or ("online" if self._wandb.login(prompt=False) else "offline"))
        except Exception as error:  # a wrong key, no network, a service that is down: the library has a type for each
            self._begin("offline")
            why = str(error).partition("\n")[0] or type(error).__name__
            self._say(
                f"W&B cannot be reached ({why}): the run is kept, to be sent later with wandb sync {self._run.dir.removesuffix('/files')}"
            )

    def step(self, record: StepRecord) -> None:
        """A point of each curve; W&B itself passes over steps that it has."""
        self._run.log(of_step(record), step=record.step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """A point of each held-out curve, and what the model wrote."""
        self._run.log(of_evaluation(evaluation), step=evaluation.step)
        if evaluation.examples:
            rows = [[evaluation.step, *example] for example in evaluation.examples]
            self._run.log({"written": self._wandb.Table(["step", "model", "truth"], data=rows)}, step=evaluation.step)
        if evaluation.sample:
            row = [evaluation.step, *evaluation.sample]
            self._run.log({"sample": self._wandb.Table(["step", "prompt", "text"], data=[row])}, step=evaluation.step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()

    def _begin(self, mode: str) -> None:
        self._run = self._wandb.init(
            project=self._track.project,
            entity=self._track.entity,
            name=self._track.name or self._folder.name,
            id=self._id(),
            resume="allow",
            mode=mode,
            dir=str(self._folder),
            config=self._config,
            settings=self._wandb.Settings(**_SETTINGS),
        )

    def _id(self) -> str:
        """This run's at W&B, the same in every session."""
        file = self._folder / "wandb" / "id"
        if not file.exists():
            file.write_text(secrets.token_hex(4) + "\n")
        return file.read_text().strip()
