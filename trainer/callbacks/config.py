"""Where curves are sent."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from trainer.schema import setting


@dataclass
class TrackConfig:
    """What is kept of a run beside ``metrics.jsonl``. None of it can stop training: what fails is said once and left out."""

    tensorboard: bool = setting(False, "write run.dir/tensorboard")
    wandb: bool = setting(
        False, "send to Weights & Biases; without a key, or where it cannot be reached, kept in run.dir/wandb to be sent later"
    )
    project: str = setting("isotrain", "W&B's project", aliases=("wandb_project", "wandb_project_name"))
    entity: str | None = setting(None, "W&B's user or team; None: the key's own", aliases=("wandb_entity",))
    name: str | None = setting(None, "name of the run at W&B; None: that of the folder run.dir", aliases=("wandb_name", "wandb_run_name"))

    profile_from: int | None = setting(
        None, "first step of a window under torch's profiler, written to run.dir/profile for every rank; None: no profile", minimum=1
    )
    profile_steps: int = setting(3, "steps of that window", minimum=1)

    def missing_packages(self) -> list[str]:
        """A sentence for each package that is asked for and not installed."""
        return [
            f"track.{package}=true needs the package {package}: pip install 'isotrain[track]', or set it to false."
            for package in ("tensorboard", "wandb")
            if getattr(self, package) and importlib.util.find_spec(package) is None
        ]
