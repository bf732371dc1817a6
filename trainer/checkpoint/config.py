"""Checkpoint settings."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema import setting


@dataclass
class CheckpointConfig:
    """When to save, what to keep, and where to go on from."""

    every: int | None = setting(
        100,
        "steps between checkpoints; one is always written at the end; None: only at the end",
        minimum=1,
        aliases=("save_steps", "save_interval", "save_every"),
    )
    resume: str = setting(
        "latest",
        "latest: continue if run.dir holds a checkpoint; never: refuse if it does; or a checkpoint folder to start from",
        aliases=("resume_from_checkpoint",),
    )
    keep: int | None = setting(2, "how many checkpoints to keep; None: all", minimum=1, aliases=("save_total_limit", "keep_last"))
    background: bool = setting(
        False,
        "go on training while a checkpoint is written; keeps a copy of each rank's share in memory",
        aliases=("async_save", "async", "async_mode", "background_save"),
    )
