"""How much CPU time a training step of ours costs beyond a hand-written loop's, with Accelerate and transformers.Trainer beside it.

    python benchmarks/overhead.py [--rounds 7] [--steps 400] [--warmup 100]

A step is so small here (two Llama blocks of width 32, 4 rows of 32 tokens, fp32, one thread, clipping on) that almost all of it is the
host's work. Each of the four is a fresh process in every round, and they take turns of 10 steps, so that a noisy second hits all of them.
Before anything is timed, their losses over 20 steps on one token stream have to agree: ours and the loop's to 1e-6 relative.

Prints the numbers and writes benchmarks/results/overhead.json. Needs no GPU; close other programs for steady numbers.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import CONTENDERS, UPDATE
from machine import machine
from update import LOG_EVERY

from trainer.assembly import build_order, open_job
from trainer.config import load
from trainer.data.loader import StepLoader
from trainer.distributed.launch import Launch
from trainer.model.names import named_owners
from trainer.model.weights import FromSeed

HERE = Path(__file__).parent
CORPUS = ("argparse.py", "ast.py", "calendar.py", "configparser.py", "dataclasses.py", "difflib.py", "inspect.py", "typing.py")
BATCH, LENGTH = 4, 32
GATE_STEPS, GATE = 20, {"isotrain": 1e-6, "accelerate": 1e-6, "transformers.Trainer": 1e-4}
TARGET_SECONDS = 0.5e-3


def overrides(folder: Path) -> list[str]:
    """Our run's configuration; everything that it does not name is on or off as by default."""
    return [
        "data=text",
        f"data.path={folder / 'corpus'}",
        "data.document=paragraph",
        f"data.sequence_length={LENGTH}",
        "data.tokenizer.vocab_size=512",
        f"data.cache_dir={folder / 'cache'}",
        "model=llama_tiny",
        "model.hidden_size=32",
        "model.num_layers=2",
        "precision=fp32",
        f"train.global_batch={BATCH}",
        f"train.micro_batch={BATCH}",
        *UPDATE.overrides(),
        "run.device=cpu",
    ]


def make_job(folder: Path, steps: int) -> None:
    """Writes what all contenders start from: the model, its first weights and each step's micro-batch."""
    (folder / "corpus").mkdir()
    for name in CORPUS:
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, folder / "corpus")
    (folder / "overrides.json").write_text(json.dumps(overrides(folder)))
    job = open_job(load(overrides(folder), 1), Launch())
    config, skeleton, rows = job.config, job.skeleton, job.corpus.samples("train")
    skeleton.model.config.save_pretrained(folder / "model")
    weights = FromSeed(skeleton, config.train.seed)
    save_file({name: weights.fill(name).contiguous() for name, _ in named_owners(skeleton.model)}, folder / "weights.safetensors")
    collate = partial(config.objective.collate, context=job.context)  # all have positions: micro-batches are to be stacked
    loader = StepLoader(rows, build_order(config, rows), collate, global_batch=BATCH, micro_batch=BATCH)
    batches = [micro_batches[0] for _, _, micro_batches in loader.steps(1, steps)]
    stacked = {name: torch.stack([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    save_file(stacked | {"labels": torch.stack([batch.labels for batch in batches])}, folder / "batches.safetensors")


class Contender:
    """One of the four in a fresh process, which stands still after each log interval until it is let go on.

    Args:
        name: which.
        folder: made by ``make_job``.
        steps, warmup: of its training.
    """

    def __init__(self, name: str, folder: Path, steps: int, warmup: int):
        self._name = name
        self._answer = folder / f"{name}.json"
        self._log = (folder / f"{name}.log").open("w+")
        self._turns, turns = os.pipe()
        command = [sys.executable, str(HERE / "contenders.py"), name, str(folder), str(steps), str(warmup), str(self._answer), str(turns)]
        variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        self._process = subprocess.Popen(
            command,
            env={**variables, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[turns],
        )
        os.close(turns)
        self._wait()

    def go_on(self) -> None:
        """Lets it run one interval more, and waits for it."""
        self._let()
        self._wait()

    def finish(self) -> dict[str, Any]:
        """Lets it end; returns its losses and times."""
        self._let()
        self._require(self._process.wait() == 0)
        os.close(self._turns)
        self._log.close()
        return json.loads(self._answer.read_text())

    def _let(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"g")
        self._process.stdin.flush()

    def _wait(self) -> None:
        self._require(os.read(self._turns, 1) == b".")

    def _require(self, is_well: bool) -> None:
        if not is_well:
            self._log.seek(0)
            raise SystemExit(f"{self._name} failed:\n{self._log.read()[-4000:]}")


def race(names: list[str], folder: Path, steps: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Trains with each contender in a process of its own; they take turns of one log interval, so never run at once."""
    contenders = {name: Contender(name, folder, steps, warmup) for name in names}
    for _ in range(steps // LOG_EVERY - 1):
        for contender in contenders.values():
            contender.go_on()
    return {name: contender.finish() for name, contender in contenders.items()}


def gate(folder: Path) -> dict[str, float]:
    """The largest relative difference of each contender's losses from the hand loop's.

    Raises:
        SystemExit: they do not train the same model on the same tokens, so that no comparison of times would mean anything.
    """
    losses = {name: answer["losses"] for name, answer in race(list(CONTENDERS), folder, GATE_STEPS, LOG_EVERY).items()}
    reference = losses.pop("hand loop")
    differences = {name: max(abs(a - b) / abs(b) for a, b in zip(values, reference, strict=True)) for name, values in losses.items()}
    for name, difference in differences.items():
        if not difference <= GATE[name]:
            raise SystemExit(
                f"{name}: its losses differ from the hand loop's by {difference:.2e}, more than {GATE[name]:.0e}. No times are taken."
            )
    return differences


def ask(description: str | None, rounds: int, steps: int) -> argparse.Namespace:
    """The command line's options; ``rounds`` and ``steps`` are what they are by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--warmup", type=int, default=100)
    options = parser.parse_args()
    if options.steps % LOG_EVERY or options.warmup % LOG_EVERY or not 0 < options.warmup < options.steps:
        parser.error(f"--steps and --warmup must be multiples of {LOG_EVERY}, and the second the smaller one")
    return options


def take_times(
    names: list[str], gate: Callable[[Path], dict[str, float]], options: argparse.Namespace
) -> tuple[dict[str, float], list[dict[str, list[float]]]]:
    """Lets ``gate`` compare losses, then lets all run in every round, beginning with another one each time.

    Returns:
        What ``gate`` returns, and for each round the CPU seconds per step of each contender's intervals.
    """
    rounds: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_job(folder, options.steps)
        differences = gate(folder)
        for number in range(options.rounds):
            turn = number % len(names)
            answers = race(names[turn:] + names[:turn], folder, options.steps, options.warmup)
            rounds.append({name: answers[name]["cpu_seconds_per_step"] for name in names})
            medians = (f"{name} {statistics.median(values) * 1e3:.2f} ms" for name, values in rounds[-1].items())
            print(f"round {number + 1}: {', '.join(medians)}", flush=True)
    return differences, rounds


def over(rounds: list[dict[str, list[float]]], name: str, reference: str) -> list[float]:
    """What ``name`` takes beyond ``reference``, by round: the median over intervals, in each of which the machine was the same for both."""
    return [statistics.median(a - b for a, b in zip(one[name], one[reference], strict=True)) for one in rounds]


def what_was_measured(options: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """What a result file says before its numbers."""
    return {
        "what": "CPU seconds per optimizer step after warm-up; fresh processes that take turns of one log interval",
        **machine("torch", "transformers", *packages),
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
    }


def keep(name: str, results: dict[str, Any]) -> None:
    """Writes a result file."""
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


def _row(rounds: list[dict[str, list[float]]], name: str) -> dict[str, Any]:
    medians, beyond = [statistics.median(one[name]) for one in rounds], over(rounds, name, "hand loop")
    return {
        "rounds": medians,
        "median": statistics.median(medians),
        "lowest": min(min(one[name]) for one in rounds),
        "over_hand_loop_rounds": beyond,
        "median_over_hand_loop": statistics.median(beyond),
    }


def main() -> None:
    options = ask(__doc__, rounds=7, steps=400)
    differences, rounds = take_times(list(CONTENDERS), gate, options)
    results = {
        **what_was_measured(options, "accelerate"),
        "gate": {"steps": GATE_STEPS, "largest_relative_difference_of_loss": differences, "allowed": GATE},
        "target_seconds_over_hand_loop": TARGET_SECONDS,
        "contenders": {name: _row(rounds, name) for name in CONTENDERS},
    }
    for name, row in results["contenders"].items():
        beyond = f"{row['median_over_hand_loop'] * 1e3:+.2f} over the loop"
        print(f"{name:>20}: median {row['median'] * 1e3:6.2f} ms, lowest interval {row['lowest'] * 1e3:6.2f}, {beyond}")
    keep("overhead", results)


if __name__ == "__main__":
    main()
