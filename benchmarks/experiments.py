"""Runs of shipped experiments on the CPU, started as a user starts them, and what they say of themselves."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.find import choose
from trainer.config import Config, from_yaml

ROOT = Path(__file__).parents[1]


def run_experiment(
    name: str, overrides: Sequence[str], seeds: Sequence[int], parent: Path | None
) -> tuple[Config, dict[int, list[dict[str, Any]]]]:
    """Trains once per seed; a run that ``parent`` holds already is finished, not repeated.

    Returns:
        The config of the last run, and the lines of each run's ``metrics.jsonl`` by seed.
    """
    parent, lines = parent or Path(tempfile.mkdtemp()), {}
    for seed in seeds:
        run_dir = parent / f"seed-{seed}"
        command = [sys.executable, "train.py", f"experiment={name}", *overrides, f"train.seed={seed}", f"run.dir={run_dir}"]
        subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "2", **os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
        lines[seed] = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return from_yaml((choose(run_dir)[0] / "config.yaml").read_text()), lines


def measured(seed: int, lines: Sequence[dict[str, Any]], metric: str, names: Sequence[str]) -> dict[str, Any]:
    """A finished run in numbers: these ``names`` of its last evaluation, how ``metric`` went, and how long it trained."""
    steps = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluate"]
    return {
        "seed": seed,
        **{name: held_out[-1][name] for name in names},
        f"{metric}_by_step": {line["step"]: line[metric] for line in held_out},
        "training_seconds": sum(line["num_targets"] / line["tokens_per_second"] for line in steps),
    }


def arguments(description: str | None, seeds: Sequence[int]) -> argparse.Namespace:
    """``--run-dir`` and ``--seeds``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    return parser.parse_args()
