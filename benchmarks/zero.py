"""How much CPU time a training step of ours under ZeRO costs beyond a bare loop's over ``deepspeed.initialize``.

    python benchmarks/zero.py [--rounds 5] [--steps 300] [--warmup 100]

The job is that of benchmarks/overhead.py, on one rank, so that almost all of a step is the host's work. Both give DeepSpeed the same
configuration and a fused AdamW of torch. Each of the six (ours and the loop, stages 1, 2 and 3) is a fresh process in every round, and they
take turns of 10 steps. Before anything is timed, losses over 20 steps have to agree to 1e-6 relative.

Prints the numbers and writes benchmarks/results/zero.json. Needs no GPU; close other programs for steady numbers.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import LOG_EVERY, STAGES, ZERO
from machine import machine
from overhead import BATCH, GATE_STEPS, LENGTH, make_job, race

HERE = Path(__file__).parent
GATE = 1e-6
TARGET_SECONDS = 0.5e-3


def gate(folder: Path) -> dict[str, float]:
    """The largest relative difference of our losses from the bare loop's, by stage.

    Raises:
        SystemExit: they do not train the same model on the same tokens.
    """
    losses = {name: answer["losses"] for name, answer in race(list(ZERO), folder, GATE_STEPS, LOG_EVERY).items()}
    differences = {}
    for stage in STAGES:
        pairs = zip(losses[f"isotrain zero{stage}"], losses[f"deepspeed zero{stage}"], strict=True)
        differences[f"zero{stage}"] = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
        if not differences[f"zero{stage}"] <= GATE:
            raise SystemExit(
                f"zero{stage}: our losses differ from the bare loop's by {differences[f'zero{stage}']:.2e}. No times are taken."
            )
    return differences


def row(rounds: list[dict[str, list[float]]], stage: int) -> dict[str, Any]:
    """CPU seconds per step of one stage. Differences are taken interval by interval, in which the machine was the same."""
    ours, loop = ([one[f"{name} zero{stage}"] for one in rounds] for name in ("isotrain", "deepspeed"))
    over = [statistics.median(a - b for a, b in zip(*pair, strict=True)) for pair in zip(ours, loop, strict=True)]
    return {
        "isotrain": {"rounds": [statistics.median(one) for one in ours], "lowest": min(map(min, ours))},
        "deepspeed": {"rounds": [statistics.median(one) for one in loop], "lowest": min(map(min, loop))},
        "over_bare_loop_rounds": over,
        "median_over_bare_loop": statistics.median(over),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=100)
    options = parser.parse_args()
    if options.steps % LOG_EVERY or options.warmup % LOG_EVERY or not 0 < options.warmup < options.steps:
        parser.error(f"--steps and --warmup must be multiples of {LOG_EVERY}, and the second the smaller one")
    rounds: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_job(folder, options.steps)
        differences = gate(folder)
        names = list(ZERO)
        for number in range(options.rounds):
            turn = number % len(names)
            answers = race(names[turn:] + names[:turn], folder, options.steps, options.warmup)
            rounds.append({name: answers[name]["cpu_seconds_per_step"] for name in names})
            medians = (f"{name} {statistics.median(values) * 1e3:.2f} ms" for name, values in rounds[-1].items())
            print(f"round {number + 1}: {', '.join(medians)}", flush=True)
    results = {
        "what": "CPU seconds per optimizer step after warm-up; fresh processes that take turns of one log interval",
        **machine("torch", "transformers", "deepspeed"),
        "setting": {
            "model": "Llama, 2 blocks, width 32, vocabulary 512",
            "batch": BATCH,
            "sequence_length": LENGTH,
            "ranks": 1,
            "steps": options.steps,
            "warmup": options.warmup,
            "log_every": LOG_EVERY,
            "threads": 1,
        },
        "gate": {"steps": GATE_STEPS, "largest_relative_difference_of_loss": differences, "allowed": GATE},
        "target_seconds_over_bare_loop": TARGET_SECONDS,
        "stages": {f"zero{stage}": row(rounds, stage) for stage in STAGES},
    }
    for name, stage in results["stages"].items():
        ours, theirs = (statistics.median(stage[who]["rounds"]) * 1e3 for who in ("isotrain", "deepspeed"))
        print(f"{name}: ours {ours:.2f} ms, the loop {theirs:.2f} ms, {stage['median_over_bare_loop'] * 1e3:+.2f} ms over the loop")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "zero.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
