"""MiniLM fine-tuned on VADER's film reviews, as `experiment=minilm_vader` says, on CPU in fp32: its held-out accuracy, once per seed.

    python benchmarks/minilm_vader.py [--run-dir DIR] [--seeds 0 1 2]

The target is 82 %. The seed draws the new head and the order of the samples; which sentences are held out depends on their text alone, so
every seed is judged on the same ones. Runs that DIR holds already are finished, not repeated. The measurement fetches 86 MB once and takes
minutes per seed. Writes benchmarks/results/minilm_vader.json.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from experiments import arguments, measured, run_experiment
from machine import machine

from trainer.config import Config
from trainer.data.prepare import prepare

TARGET = 0.82


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
    given = arguments(__doc__, [0, 1, 2])
    config, lines = run_experiment("minilm_vader", ["precision=fp32"], given.seeds, given.run_dir)
    runs = [measured(seed, told, "accuracy", ["accuracy", "f1_macro", "num_targets"]) for seed, told in lines.items()]
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
