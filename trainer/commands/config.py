"""Settings of the commands that are not a training run."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.model.config import SampleConfig
from trainer.schema import setting


@dataclass
class Export:
    """A checkpoint as a Hugging Face folder."""

    checkpoint: str = setting(
        "???", "a run directory (its newest checkpoint), or a checkpoint folder", aliases=("from", "source", "run", "path")
    )
    to: str = setting("???", "the folder to write; must not exist yet", aliases=("output_dir", "out", "output"))
    dtype: str = setting("fp32", "number type of the written weights", choices=("fp32", "bf16"), aliases=("torch_dtype", "precision"))


@dataclass
class Generate(SampleConfig):
    """Text from a trained model."""

    checkpoint: str = setting(
        "???", "a run directory, a checkpoint folder, or a Hugging Face folder", aliases=("from", "model", "run", "path")
    )
    seed: int = setting(0, "seed of the sampling", minimum=0)


@dataclass
class Evaluate:
    """The held-out metrics of a checkpoint, or of a Hugging Face folder."""

    checkpoint: str | None = setting(
        None,
        "a run directory (its newest checkpoint), or a checkpoint folder; None: model=pretrained model.path=FOLDER says what is evaluated",
    )
    to: str | None = setting(None, "a file that gets the metrics as JSON; must not exist yet")


@dataclass
class Report:
    """What is drawn of runs."""

    to: str | None = setting(
        None,
        "the file to write, must not exist yet; None: RUN/report.html, or compare-RUN-RUN.html beside the first run",
        aliases=("out", "output", "output_dir"),
    )


SETTINGS: dict[str, type] = {"evaluate": Evaluate, "generate": Generate, "export": Export, "report": Report}
"""The schema of each command that takes settings of its own."""
