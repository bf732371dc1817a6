"""The trackers that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

from trainer.callbacks.background import Background, Tracker
from trainer.callbacks.config import TrackConfig
from trainer.callbacks.tensorboard import TensorBoard
from trainer.callbacks.wandb import WeightsAndBiases
from trainer.protocols import Callback


def trackers(track: TrackConfig, folder: Path, done: int, config: str, say: Callable[[str], None]) -> Iterator[Callback]:
    """Yields a callback for each.

    Args:
        track: which.
        folder: ``run.dir``.
        done: steps before this session.
        config: the run's, as YAML.
        say: says a sentence.
    """
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": partial(TensorBoard, folder / "tensorboard", done, config),
        "wandb": partial(WeightsAndBiases, track, folder, yaml.safe_load(config), say),
    }
    for name, make in made.items():
        if not getattr(track, name):
            continue
        try:
            tracker = make()
        except Exception as error:  # an installed package that cannot be imported
            say(f"track.{name}=true is left out; training goes on, and metrics.jsonl has everything ({type(error).__name__}: {error})")
        else:
            yield Background(tracker, say)
