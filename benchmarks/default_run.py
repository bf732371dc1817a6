"""The default run, as `make train` starts it: how far its loss falls, how long it trains, and whether its samples look like Python.

    python benchmarks/default_run.py [--run-dir DIR]

Targets: the loss (mean of the last 20 steps: one step's batch is worth +-0.3) falls from about ln(vocabulary) by more than half within
180 s of training on 2 cores, and of 20 samples of 128 tokens at least 15 contain a line that starts with def, class, import, return, if
or for. One draw of 20 is worth +-2, so 200 are drawn and told per 20: from the beginning of a document, as the run's own sample is, and,
beside it, going on from "def " without counting that line. How many of the corpus' own first 128 tokens contain such a line stands there too:
more than that no faithful model can reach.
Writes benchmarks/results/default_run.json.
"""

import argparse
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine
from transformers import AutoTokenizer

from trainer.checkpoint.export import load_model
from trainer.checkpoint.find import choose
from trainer.data.config import PythonStdlib
from trainer.data.sources import Skipped
from trainer.model.generation import generate_text

ROOT = Path(__file__).parents[1]
NUM_SAMPLES = 200
VOCABULARY = 4096
PYTHON_LINE = re.compile(r"^\s*(def|class|import|return|if|for)\b", re.MULTILINE)


def train(run_dir: Path) -> None:
    """Starts the main job as a user does."""
    command = [
        Path(sys.executable).with_name("torchrun"),
        "--standalone",
        "--nproc-per-node",
        "2",
        "train.py",
        "+strategy=fsdp",
        f"run.dir={run_dir}",
    ]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def shares(run_dir: Path) -> dict[str, Any]:
    """How many samples in 20, by the generate command's defaults, contain a line of Python; and how many real documents."""
    folder, _ = choose(run_dir)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = load_model(folder)

    def count(prompt: str, first_line: int) -> float:
        texts = generate_text(
            model, tokenizer, prompt, max_new_tokens=128, temperature=0.9, top_k=None, top_p=0.95, seed=0, num_samples=NUM_SAMPLES
        )
        return 20 * statistics.mean(has_python_line("\n".join(text.split("\n")[first_line:])) for text in texts)

    documents = [text for _, text in itertools.islice(PythonStdlib().source().documents(Skipped(limit=100)), 400)]
    heads = [tokenizer.decode(tokenizer(text)["input_ids"][:129], skip_special_tokens=True) for text in documents]
    return {
        "by_prompt": {"": count("", first_line=0), "def ": count("def ", first_line=1)},
        "real_documents_per_20": 20 * statistics.mean(map(has_python_line, heads)),
    }


def has_python_line(text: str) -> bool:
    """Whether a line of ``text`` starts, after its indentation, with one of the words."""
    return bool(PYTHON_LINE.search(text))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run-dir", type=Path, default=None)
    run_dir = arguments.parse_args().run_dir or Path(tempfile.mkdtemp()) / "run"
    train(run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluate"]
    # Each interval's speed stands in all of its lines, so the times of its steps add up to it.
    seconds = sum(line["num_targets"] / line["tokens_per_second"] for line in steps)
    result = {
        "what": "the default run: 2 ranks, fsdp, embedded data",
        **machine("torch", "transformers"),
        "steps": len(steps),
        "first_loss": steps[0]["loss"],
        "last_loss": statistics.mean(line["loss"] for line in steps[-20:]),
        "held_out_loss": held_out[-1]["loss"],
        "ln_vocabulary": math.log(VOCABULARY),
        "training_seconds": seconds,
        "tokens_per_second": sum(line["num_targets"] for line in steps) / seconds,
        "samples_with_a_python_line": shares(run_dir),
        "targets": {"last_loss_below": steps[0]["loss"] / 2, "training_seconds_at_most": 180, "samples_per_20_at_least": 15},
    }
    path = Path(__file__).with_name("results") / "default_run.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
