"""First docstring lines written by a T5 from scratch, `experiment=t5_docstrings` at a size for CPU, against copying the function's first line.

    python benchmarks/docstrings.py [--run-dir DIR] [--seeds 0]

Both are judged by ROUGE-L (F-measure of the longest common subsequence of words) on all held-out functions, which are those of whole held-out
files. There is no target: a model of a few million parameters that has seen 6,500 functions is reported as it is. Three guesses need no
training: the function's first line, its lines down to `def` (decorators included), and the commonest docstring of the training functions,
whatever the function. Takes minutes per seed. Writes benchmarks/results/docstrings.json.
"""

import json
import os
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from experiments import arguments, measured, run_experiment
from machine import machine
from transformers import AutoTokenizer

from trainer.config import Config
from trainer.data.prepare import Corpus, prepare
from trainer.objective.seq2seq import rouge_l

SIZE = [
    "model=t5_tiny",
    "precision=fp32",
    "data.sequence_length=128",
    "data.tokenizer.vocab_size=4096",
    "train.steps=2400",
    "train.global_batch=16",
    "train.evaluate_every=400",
    "optimizer.lr=1e-3",
    "optimizer.weight_decay=0.01",
    "optimizer.warmup_steps=100",
]
"""What is not as in the experiment, so that a CPU can do it in minutes."""


def texts(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """Sources and targets of a split as the model gets them, cut to their rows."""
    samples = corpus.samples(split)
    taken = samples.take(np.arange(len(samples)))
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    source, target = (tokenizer.batch_decode(taken.rows[field].tokens, skip_special_tokens=True) for field in ("source", "target"))
    return source, target


def baselines(config: Config) -> dict[str, Any]:
    """ROUGE-L of guesses that need no training."""
    needs = config.objective.needs(config.data.sequence_length, config.data.target_length)
    corpus = prepare(config.data, needs, None, True)
    source, target = texts(corpus, "validation")
    trained_on = texts(corpus, "train")[1]
    commonest = Counter(trained_on).most_common(1)[0][0]
    guesses = {
        "first_line": [text.split("\n")[0] for text in source],
        "lines_down_to_def": [down_to_def(text) for text in source],
        "commonest_docstring": [commonest] * len(source),
    }
    return {
        "train_functions": len(trained_on),
        "held_out_functions": len(source),
        "commonest_docstring": commonest,
        "baselines_rouge_l": {name: rouge_l(guess, target) for name, guess in guesses.items()},
    }


def down_to_def(source: str) -> str:
    """The decorators and the first line of the signature."""
    lines = source.split("\n")
    end = next((number for number, line in enumerate(lines) if line.startswith(("def ", "async def "))), 0)
    return "\n".join(lines[: end + 1])


def main() -> None:
    given = arguments(__doc__, [0])
    config, lines = run_experiment("t5_docstrings", SIZE, given.seeds, given.run_dir)
    runs = [measured(seed, told, "rouge_l", ["rouge_l", "exact_match", "loss", "examples"]) for seed, told in lines.items()]
    result = {
        "what": "T5 from scratch on the standard library's functions: first docstring line from source",
        **machine("torch", "transformers", "torchmetrics"),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 2)),
        "overrides": SIZE,
        **baselines(config),
        "runs": runs,
        "rouge_l": statistics.mean(run["rouge_l"] for run in runs),
    }
    path = Path(__file__).with_name("results") / "docstrings.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
