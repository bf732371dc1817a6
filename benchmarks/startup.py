"""CPU time until train.py answers --help, refuses a bad configuration, and has done its first step.

    python benchmarks/startup.py [--repeats 5]

Fresh processes with warm file caches, the median of several; CPU time is user and system time of the process and its children. The
first two must not import torch. Prints the numbers and writes benchmarks/results/startup.json. Needs no GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from machine import machine

HERE = Path(__file__).parent
TARGET_SECONDS = 1.0
REFUSED, DONE = 2, 0
FIRST_STEP = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "data=text",
    f"data.path={Path(sysconfig.get_path('stdlib')) / 'unittest'}",
    "data.sequence_length=32",
    "data.tokenizer.vocab_size=512",
    "train.steps=10",
    "train.stop_after=1",
    "train.log_every=1",
    "optimizer.warmup_steps=0",
    "run.device=cpu",
    "run.quiet=true",
)


def cpu_seconds(arguments: list[str], exit_code: int) -> float:
    """CPU seconds of one ``train.py ARGUMENTS``, which must end with ``exit_code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "train.py", *arguments]
    done = subprocess.run(command, cwd=HERE.parent, env={**variables, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode != exit_code:
        raise SystemExit(f"train.py {' '.join(arguments)} ended with {done.returncode} instead of {exit_code}:\n{done.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [[*FIRST_STEP, f"data.cache_dir={folder}/cache", f"run.dir={folder}/run-{number}"] for number in range(options.repeats + 1)]
        commands = {
            "help": ([["--help"]] * len(runs), DONE, TARGET_SECONDS),
            "refused": ([["+train.stepz=5", "optimizer.lr=nan"]] * len(runs), REFUSED, TARGET_SECONDS),
            "first_step": (runs, DONE, None),
        }
        measured = {}
        for name, (repeated, exit_code, target) in commands.items():
            cpu_seconds(repeated[0], exit_code)  # warms the file caches, and prepares the corpus
            values = [cpu_seconds(arguments, exit_code) for arguments in repeated[1:]]
            measured[name] = {"rounds": values, "median": statistics.median(values), "lowest": min(values), "target_seconds": target}
            print(f"{name:>10}: median {measured[name]['median']:.2f} s CPU, lowest {min(values):.2f}", flush=True)
    results = {
        "what": "CPU seconds of fresh processes; first_step: one rank, a tiny model, a prepared corpus, with its checkpoint",
        **machine("torch", "transformers", "hydra-core"),
        "commands": measured,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "startup.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
