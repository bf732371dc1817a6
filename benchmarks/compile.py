"""What compiled blocks (``train.compile=true``) save of a step's CPU time, and what compiling costs.

    python benchmarks/compile.py [--rounds 3] [--steps 10]

A Llama of four blocks of width 256 on 4 rows of 256 tokens, fp32, one thread, our native engine on one rank. Each measurement is a fresh
process with an empty compiler cache, compiled and not in turns; CPU time, because the machine may be shared. Norms of the gradients have to
agree to 1e-4 relative before anything is written.

Prints the numbers and writes benchmarks/results/compile.json. Needs g++ and no GPU: on a CPU kernels are fused, but launches, which are most of
what a GPU gains, cost next to nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine
from overhead import CORPUS, keep, overrides

WAYS = {"eager": "false", "compiled": "true"}
GATE = 1e-4
WARMUP = 3
SHAPE = ["model.hidden_size=256", "model.intermediate_size=768", "model.num_layers=4", "model.num_heads=4", "data.sequence_length=256"]


def measure(folder: Path, way: str, steps: int) -> dict[str, Any]:
    """In this process: the first step's CPU seconds, the median of the later ones after a warm-up, and all norms."""
    import torch

    from tests.contracts.engines import build_engine, micro_batches
    from trainer.testing import last_wins
    from trainer.types import StepPlan

    torch.set_num_threads(1)
    job, engine = build_engine(last_wins([*overrides(folder), *SHAPE, f"train.compile={WAYS[way]}"]))
    seconds, norms = [], []
    for step in range(1, WARMUP + steps + 1):
        batches = micro_batches(job, engine, step)
        counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
        before = time.process_time(), os.times().children_user
        engine.forward_backward(step, batches, counts)
        norms.append(float(engine.optimizer_step(StepPlan(step, 0.1, 1.0)).grad_norm))
        seconds.append(time.process_time() - before[0] + os.times().children_user - before[1])
    return {"first": seconds[0], "step": statistics.median(seconds[WARMUP:]), "norms": norms}


def apart(folder: Path, way: str, steps: int) -> dict[str, Any]:
    """``measure`` in a fresh process, with nothing compiled before."""
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with tempfile.TemporaryDirectory() as cache:
        own = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", str(folder), way, str(steps)]
        done = subprocess.run(command, env={**variables, **own}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "WAY", "STEPS"), help="in this process, for the others")
    options = parser.parse_args()
    if options.measure:
        folder, way, steps = options.measure
        print(json.dumps(measure(Path(folder), way, int(steps))))
        return
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus").mkdir()
        for name in CORPUS:
            shutil.copy(Path(sysconfig.get_path("stdlib")) / name, Path(folder) / "corpus")
        for _ in range(options.rounds):
            for way, found in rounds.items():
                found.append(apart(Path(folder), way, options.steps))
    pairs = zip(*(rounds[way][0].pop("norms") for way in WAYS), strict=True)
    difference = max(abs(compiled - eager) / eager for eager, compiled in pairs)
    if not difference <= GATE:
        raise SystemExit(f"Norms of the gradients differ by {difference:.2e}. Nothing is written.")
    for found in rounds.values():
        for one in found:
            one.pop("norms", None)
    medians = {way: {key: statistics.median(one[key] for one in found) for key in ("first", "step")} for way, found in rounds.items()}
    results = {
        "what": "CPU seconds of an optimizer step with compiled blocks and without; fresh processes in turns, compiler cache empty",
        **machine("torch", "transformers"),
        "setting": {"model": "Llama, 4 blocks, width 256", "batch": 4, "sequence_length": 256, "threads": 1, "steps": options.steps},
        "difference_of_norm": difference,
        "ways": {way: {**medians[way], "rounds": found} for way, found in rounds.items()},
        "ratio": medians["compiled"]["step"] / medians["eager"]["step"],
        "seconds_to_compile": medians["compiled"]["first"] - medians["eager"]["first"],
    }
    for way, row in medians.items():
        print(f"{way}: {row['step'] * 1e3:.0f} ms a step, the first {row['first']:.1f} s")
    keep("compile", results)


if __name__ == "__main__":
    main()
