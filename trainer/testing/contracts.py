"""The contract suites as functions: give them a command line, and they say whether its curve is the one it must be."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.testing.ranks import run_ranks

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.prepare import Corpus


def train_here(arguments: Sequence[str]) -> int:
    """What one rank does: ``python train.py ARGUMENTS``, inside this process.

    Returns:
        The exit code of a session that ends by itself.
    """
    from trainer.config import load
    from trainer.distributed.launch import read_launch
    from trainer.run import train

    launch = read_launch(os.environ)
    return train(load(list(arguments), launch.world_size), launch)


def train_curve(arguments: Sequence[str], run_dir: Path, world_size: int = 1, timeout: float = 120.0) -> list[dict[str, Any]]:
    """Trains and returns the ``train`` lines of ``metrics.jsonl`` in step order.

    Args:
        arguments: overrides as on the command line, without ``run.dir``; unlike there, a later one replaces an earlier one.
        run_dir: the run directory; a run that is there already goes on.
        world_size: gloo ranks.
        timeout: seconds.
    """
    codes = run_ranks(train_here, world_size, last_wins([*arguments, f"run.dir={run_dir}"]), timeout=timeout)
    assert codes == [0] * world_size, f"exit codes {codes}"
    return read_curve(run_dir)


def prepared(arguments: Sequence[str]) -> tuple[Config, Corpus]:
    """The config and the corpus of a command line, without a model."""
    from trainer.config import load
    from trainer.data.prepare import prepare

    config = load(last_wins(arguments), 1)
    return config, prepare(config.data, config.objective.needs(config.data.sequence_length, config.data.target_length), quiet=True)


def last_wins(arguments: Sequence[str]) -> list[str]:
    """Overrides with one value per key, the last, so that a test can start from shared ones."""
    return list({argument.partition("=")[0].lstrip("+"): argument for argument in arguments}.values())


def read_curve(run_dir: Path) -> list[dict[str, Any]]:
    """The ``train`` lines of a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def assert_same_curve(curve: list[dict[str, Any]], reference: list[dict[str, Any]], loss: float = 1e-5, grad_norm: float = 1e-4) -> None:
    """The contracts Gradient and Order: same steps, samples and counts; losses and norms within relative tolerances (0: bitwise)."""
    assert [line["step"] for line in curve] == [line["step"] for line in reference]
    for ours, theirs in zip(curve, reference, strict=True):
        for key in ("samples", "num_targets"):
            assert ours[key] == theirs[key], f"step {ours['step']}: {key} {ours[key]} is not {theirs[key]}"
        for key, tolerance in (("loss", loss), ("grad_norm", grad_norm)):
            difference = abs(ours[key] - theirs[key]) / abs(theirs[key])
            assert difference <= tolerance, f"step {ours['step']}: {key} {ours[key]!r} is {difference:.2e} from {theirs[key]!r}"
