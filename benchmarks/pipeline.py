"""How long ranks of a pipeline wait for one another, beside what the papers' formulas say.

    python benchmarks/pipeline.py [--rounds 5] [--forward 0.04]

Four gloo ranks train a small Llama of 8 blocks under each schedule, 8 micro-batches a step. Its arithmetic takes next to no time; each stage
sleeps instead, so that the machine's cores do not matter: as long for the gradients of hidden states, and again for those of weights, as in
the forward. With two stages on a rank each sleeps half as long. The bubble is the one that a run writes into metrics.jsonl.

Prints the numbers and writes benchmarks/results/pipeline.json. Needs no GPU.
"""

import argparse
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine
from overhead import CORPUS, keep, overrides

RANKS, MICRO_BATCHES, BLOCKS = 4, 8, 8
TARGET = 1.15
SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv")
JUDGED = SCHEDULES[:3]
"""Those whose bubble is known exactly; the others have to be below 1F1B's."""


def sleepers(seconds: float) -> tuple[Any, Any]:
    """What stands for a stage's work on hidden states, forward and backward, and on its weights."""
    import torch
    from torch import Tensor

    class InputTakes(torch.autograd.Function):
        """Sleeps in the forward, and when the gradient of hidden states is computed."""

        @staticmethod
        def forward(ctx: Any, hidden: Tensor) -> Tensor:
            time.sleep(seconds)
            return hidden.view_as(hidden)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            time.sleep(seconds)
            return gradient

    class WeightTakes(torch.autograd.Function):
        """Sleeps when the gradient of a weight is computed."""

        @staticmethod
        def forward(ctx: Any, weight: Tensor) -> Tensor:
            return weight * 0

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            time.sleep(seconds)
            return gradient.sum().reshape(1)

    return InputTakes.apply, WeightTakes.apply


def measure(arguments: list[str], seconds: float, rounds: int) -> list[tuple[float, float]]:
    """On a rank: the seconds that each step took, and the bubble in it."""
    import torch
    from torch import nn

    from tests.contracts.engines import build_engine, micro_batches

    input_takes, weight_takes = sleepers(seconds)
    job, engine = build_engine(arguments)
    for stage in engine._parts.pipeline.stages:
        weight = nn.Parameter(torch.zeros(1))
        stage.register_parameter("sleeps", weight)
        layers = stage.model.model.layers
        first = layers[engine._parts.pipeline.plan.blocks(stage.index).start]
        first.register_forward_hook(lambda module, given, output, weight=weight: input_takes(output) + weight_takes(weight))
    found = []
    for step in range(1, rounds + 2):
        batches = micro_batches(job, engine, step)
        counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
        torch.distributed.barrier()
        begun = time.perf_counter()
        engine._loop.run(step, batches, counts)
        found.append((time.perf_counter() - begun, engine.bubble()))
    return found[1:]  # the first step makes connections


def row(schedule: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Bubbles of a schedule, measured and by formula, as shares of a step."""
    from trainer.parallel.stages import LOOPED, bubble
    from trainer.testing import last_wins, run_ranks

    per_rank = LOOPED.get(schedule, 1)
    more = ["strategy=pipeline", f"strategy.schedule={schedule}", f"model.num_layers={BLOCKS}"]
    batch = [f"train.global_batch={MICRO_BATCHES}", "train.micro_batch=1", "run.device=cpu"]
    ranks = run_ranks(measure, RANKS, last_wins([*overrides(folder), *more, *batch]), options.forward / per_rank, options.rounds)
    shares = [share for _, share in ranks[0]]
    expected = bubble(schedule, RANKS, per_rank, MICRO_BATCHES)
    return {
        "stages_per_rank": per_rank,
        "step_seconds": statistics.median(max(elapsed for elapsed, _ in steps) for steps in zip(*ranks, strict=True)),
        "bubble_rounds": shares,
        "bubble": statistics.median(shares),
        "expected": expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forward", type=float, default=0.04, help="seconds that a rank sleeps in the forward of a micro-batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus").mkdir()
        for name in CORPUS:
            shutil.copy(Path(sysconfig.get_path("stdlib")) / name, Path(folder) / "corpus")
        rows = {schedule: row(schedule, Path(folder), options) for schedule in SCHEDULES}
    results = {
        "what": "share of a step in which a rank of a pipeline waits, stages sleeping instead of computing",
        **machine("torch"),
        "setting": {"ranks": RANKS, "micro_batches": MICRO_BATCHES, "forward_seconds": options.forward, "rounds": options.rounds},
        "target_ratio": TARGET,
        "judged": JUDGED,
        "schedules": rows,
    }
    for name, found in rows.items():
        print(f"{name}: {found['bubble']:.1%} of a step of {found['step_seconds']:.2f} s, by formula {found['expected']:.1%}")
    keep("pipeline", results)


if __name__ == "__main__":
    main()
