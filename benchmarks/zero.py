"""How much CPU time a training step of ours under ZeRO costs beyond a bare loop's over ``deepspeed.initialize``.

    python benchmarks/zero.py [--rounds 5] [--steps 300] [--warmup 100]

The job is that of benchmarks/overhead.py, on one rank, so that almost all of a step is the host's work. Both give DeepSpeed the same
configuration and a fused AdamW of torch. Each of the six (ours and the loop, stages 1, 2 and 3) is a fresh process in every round, and they
take turns of 10 steps. Before anything is timed, losses over 20 steps have to agree to 1e-6 relative.

Prints the numbers and writes benchmarks/results/zero.json. Needs no GPU; close other programs for steady numbers.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import STAGES, ZERO
from overhead import GATE_STEPS, TARGET_SECONDS, ask, keep, over, race, take_times, what_was_measured
from update import LOG_EVERY

GATE = 1e-6


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
    """CPU seconds per step of one stage."""
    names = {who: f"{who} zero{stage}" for who in ("isotrain", "deepspeed")}
    beyond = over(rounds, names["isotrain"], names["deepspeed"])
    times = {
        who: {"rounds": [statistics.median(one[name]) for one in rounds], "lowest": min(min(one[name]) for one in rounds)}
        for who, name in names.items()
    }
    return {**times, "over_bare_loop_rounds": beyond, "median_over_bare_loop": statistics.median(beyond)}


def main() -> None:
    options = ask(__doc__, rounds=5, steps=300)
    differences, rounds = take_times(list(ZERO), gate, options)
    results = {
        **what_was_measured(options, "deepspeed"),
        "gate": {"steps": GATE_STEPS, "largest_relative_difference_of_loss": differences, "allowed": GATE},
        "target_seconds_over_bare_loop": TARGET_SECONDS,
        "stages": {f"zero{stage}": row(rounds, stage) for stage in STAGES},
    }
    for name, stage in results["stages"].items():
        ours, theirs = (statistics.median(stage[who]["rounds"]) * 1e3 for who in ("isotrain", "deepspeed"))
        print(f"{name}: ours {ours:.2f} ms, the loop {theirs:.2f} ms, {stage['median_over_bare_loop'] * 1e3:+.2f} ms over the loop")
    keep("zero", results)


if __name__ == "__main__":
    main()
