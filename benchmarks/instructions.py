"""How many machine instructions a training step of ours takes beyond a hand-written loop's, with Accelerate and transformers.Trainer beside it.

    python benchmarks/instructions.py [--short 20] [--long 60]

The steps of benchmarks/overhead.py, counted by valgrind's cachegrind instead of timed: a count hardly moves with
what else a machine does. It says nothing of how long an instruction takes, which is what overhead.py is for. Each contender
runs twice, and the difference of a long run and a short one is that of the steps between; as many runs at a time as there are cores.

Takes 20 minutes on 2 cores. Prints the numbers and writes benchmarks/results/instructions.json. Needs valgrind (apt-get install valgrind).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from machine import machine
from overhead import BATCH, HERE, LENGTH, keep, make_job
from update import LOG_EVERY

COUNTER = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]


def count(name: str, job: Path, steps: int) -> int:
    """The instructions of a contender's whole process.

    Raises:
        SystemExit: it failed.
    """
    with Path(os.devnull).open("w") as turns:
        command = [*COUNTER, sys.executable, str(HERE / "contenders.py"), name, str(job), str(steps), str(LOG_EVERY)]
        done = subprocess.run(
            [*command, str(job / f"{name} {steps}.json"), str(turns.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            input=b"g" * (steps // LOG_EVERY - 1),  # it ends with its last step: what comes then is no step's
            pass_fds=[turns.fileno()],
            capture_output=True,
        )
    found = re.search(rb"I +refs: +([\d,]+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{name} failed:\n{done.stderr.decode()[-4000:]}")
    return int(found[1].replace(b",", b""))


def row(short: int, long: int, steps: int) -> dict[str, Any]:
    """A contender's counts of a short run and of one that has ``steps`` more."""
    return {"short": short, "long": long, "per_step": (long - short) / steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=2 * LOG_EVERY)
    parser.add_argument("--long", type=int, default=6 * LOG_EVERY)
    options = parser.parse_args()
    if options.short % LOG_EVERY or options.long % LOG_EVERY or not LOG_EVERY < options.short < options.long:
        parser.error(f"--short and --long must be multiples of {LOG_EVERY} beyond the first, and the first the smaller one")
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind counts the instructions and is not here: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        job = Path(folder)
        make_job(job, options.long)
        runs = list(product(CONTENDERS, (options.short, options.long)))
        counts = dict(zip(runs, pool.map(lambda run: count(run[0], job, run[1]), runs), strict=True))
    steps = options.long - options.short
    rows = {name: row(counts[name, options.short], counts[name, options.long], steps) for name in CONTENDERS}
    for name, found in rows.items():
        found["over_hand_loop"] = found["per_step"] - rows["hand loop"]["per_step"]
        print(f"{name:>20}: {found['per_step'] / 1e6:6.2f} M instructions a step, {found['over_hand_loop'] / 1e6:+.2f} over the loop")
    results = {
        "what": "instructions of user space per optimizer step, by valgrind's cachegrind",
        **machine("torch", "transformers", "accelerate"),
        "setting": {"batch": BATCH, "sequence_length": LENGTH, "ranks": 1, "steps": [options.short, options.long], "log_every": LOG_EVERY},
        "contenders": rows,
    }
    keep("instructions", results)


if __name__ == "__main__":
    main()
