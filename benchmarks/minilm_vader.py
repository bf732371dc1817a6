"""MiniLM fine-tuned on VADER's film reviews, as `experiment=minilm_vader` says, on CPU in fp32: its held-out accuracy, once per seed.

    python benchmarks/minilm_vader.py [--run-dir DIR] [--seeds 0 1 2]

The target is 82 %. The seed draws the new head and the order of the samples; which sentences are held out depends on their text alone, so
every seed is judged on the same ones. Runs that DIR holds already are finished, not repeated. The measurement fetches 86 MB once and takes
minutes per seed. Writes benchmarks/results/minilm_vader.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from machine import machine

from trainer.checkpoint.checkpointer import choose
from trainer.config import Config, from_yaml
from trainer.data.prepare import prepare

ROOT = Path(__file__).parents[1]
TARGET = 0.82


def train(run_dir: Path, seed: int) -> None:
    """Starts one run as a user does."""
    command = [sys.executable, "train.py", "experiment=minilm_vader", "precision=fp32", f"train.seed={seed}", f"run.dir={run_dir}"]
    subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "2", **os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)


def measured(run_dir: Path, seed: int) -> dict[str, Any]:
    """What a finished run says of itself."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluate"]
    return {
        "seed": seed,
        "accuracy": held_out[-1]["accuracy"],
        "f1_macro": held_out[-1]["f1_macro"],
        "held_out_sentences": held_out[-1]["num_targets"],
        "accuracy_by_step": {line["step"]: line["accuracy"] for line in held_out},
        "training_seconds": sum(line["num_targets"] / line["tokens_per_second"] for line in steps),
    }


def corpus_facts(config: Config) -> dict[str, Any]:
    """How many sentences there are, and how often the commonest class would be right."""
    folder = str(config.model.fetch()[""])
    corpus = prepare(config.data, config.objective.needs(config.data.sequence_length, None), folder, True)
    held_out = corpus.samples("validation")
    labels = held_out.take(np.arange(len(held_out))).labels
    assert labels is not None
    return {
        "train_sentences": len(corpus.samples("train")),
        "held_out_sentences": len(held_out),
        "majority_accuracy": float(np.bincount(labels).max() / labels.size),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run-dir", type=Path, default=None)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = arguments.parse_args()
    parent = given.run_dir or Path(tempfile.mkdtemp())
    runs = []
    for seed in given.seeds:
        run_dir = parent / f"seed-{seed}"
        train(run_dir, seed)
        runs.append(measured(run_dir, seed))
    config = from_yaml((choose(run_dir)[0] / "config.yaml").read_text())
    result = {
        "what": "all-MiniLM-L6-v2 on VADER film reviews, one epoch, fp32",
        **machine("torch", "transformers"),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 2)),
        "steps": config.train.steps,
        "global_batch": config.train.global_batch,
        "lr": config.optimizer.lr,
        **corpus_facts(config),
        "runs": runs,
        "mean_accuracy": statistics.mean(run["accuracy"] for run in runs),
        "lowest_accuracy": min(run["accuracy"] for run in runs),
        "target_accuracy": TARGET,
    }
    path = Path(__file__).with_name("results") / "minilm_vader.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
