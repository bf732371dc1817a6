"""Races on one GPU: each contender is a fresh process that trains the same model on the same micro-batches; they take turns by rounds.

A question (benchmarks/gpu_gpt2.py ...) says what is trained, by whom, and which goals were set before anything was measured. Losses over 20
steps have to agree before any number is written. ``--rehearse`` does all of it at a tiny size on the CPU and writes no result.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu_data import write_batches, write_corpus, write_documents, write_model, write_tokenizer
from machine import machine
from update import LOG_EVERY, Update

HERE = Path(__file__).parent
UPDATE = Update(lr=1e-4, max_norm=1.0)
GATE_STEPS, WARMUP = 20, 20
SPREAD = 0.03
"""A run whose peer's own rounds differ by more says nothing."""
FASTER = ("train.compile=true", "train.cross_entropy=chunked")
"""What ours is measured with."""


@dataclass(frozen=True)
class Goal:
    """What was to be reached, set before anything was measured.

    Attributes:
        number: a key of ``summary``, or of what a benchmark puts beside it.
        against: whose number ours is divided by; None: it is itself the number.
        at_least, at_most: the bound; one of them.
        beyond: theirs is taken away from ours instead.
    """

    number: str
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    beyond: bool = False

    @property
    def words(self) -> str:
        """The bound as the table shows it."""
        sign, bound = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        assert bound is not None
        if self.against:
            return f"{sign} {bound:g} {'more than' if self.beyond else 'x'} {self.against}"
        return f"{sign} {bound:.1%}" if self.number == "mfu" else f"{sign} {bound:,g}"

    def judge(self, contenders: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The number, and whether it is within the bound; None where it could not be had."""
        ours = contenders["isotrain"][self.number]
        theirs = contenders[self.against][self.number] if self.against in contenders else None
        if ours is None or (self.against and not theirs):
            value = None
        else:
            value = ours if theirs is None else ours - theirs if self.beyond else ours / theirs
        bound = {} if value is None else {"met": value <= self.at_most if self.at_least is None else value >= self.at_least}
        return {**asdict(self), "words": self.words, "value": value, **bound}


@dataclass(frozen=True)
class Question:
    """What is raced.

    Attributes:
        name: of the result; the file is benchmarks/NAME.py.
        ident: its number among the plans.
        what: in words.
        model, small: overrides of the model's shape, and of its tiny stand-in on the CPU.
        vocabulary, length, micro_batch: of the data; one micro-batch a step.
        contenders: who, beside ``isotrain``.
        goals: set before measuring.
        objective: of our run.
        longest: documents of at most so many words each; None: one without end.
        faster: see ``FASTER``.
        tolerance: by how much losses may differ.
        same_draws: whether all see the same batches and drop the same; otherwise losses are compared by their mean.
        steps: of each run.
        more: overrides of our run beside.
    """

    name: str
    ident: str
    what: str
    model: tuple[str, ...]
    small: tuple[str, ...]
    vocabulary: int
    length: int
    micro_batch: int
    contenders: tuple[str, ...]
    goals: tuple[Goal, ...]
    objective: str = "causal_lm"
    longest: int | None = None
    faster: tuple[str, ...] = FASTER
    tolerance: float = 1e-2
    same_draws: bool = True
    steps: int = 60
    more: tuple[str, ...] = ()


def rehearsed(question: Question) -> Question:
    """The same at a size for a CPU."""
    small = {"vocabulary": 600, "length": 32, "micro_batch": 4, "steps": 30, "model": (*question.model, *question.small)}
    small |= {"longest": question.longest and 32}
    return Question(**{**question.__dict__, **small})


def overrides(question: Question, folder: Path, device: str) -> list[str]:
    """Our run's configuration; what it does not name is on or off as by default."""
    data = ["data=text", f"data.path={folder / 'corpus'}"] if question.longest is None else ["data=jsonl", f"data.path={folder / 'corpus'}"]
    return [
        *data,
        f"objective={question.objective}",
        f"data.sequence_length={question.length}",
        f"data.tokenizer.path={folder / 'tokenizer'}",
        f"data.cache_dir={folder / 'cache'}",
        "data.validation_fraction=0",
        "strategy=single",
        "precision=bf16",
        f"train.steps={question.steps}",
        f"train.global_batch={question.micro_batch}",
        f"train.micro_batch={question.micro_batch}",
        *UPDATE.overrides(),
        f"run.device={device}",
        *question.more,
    ]


def make_job(question: Question, folder: Path, device: str) -> dict[str, Any]:
    """Writes what all contenders start from; returns what the result says of it."""
    from trainer.assembly import open_job
    from trainer.config import load
    from trainer.distributed.launch import Launch
    from trainer.testing import last_wins

    write_tokenizer(folder / "tokenizer", question.vocabulary)
    tokens = min(question.micro_batch * question.length * question.steps * 5 // 4, 4_000_000)
    write_corpus(folder / "corpus", question.vocabulary, tokens, question.longest)
    common = overrides(question, folder, device)
    job = open_job(load(last_wins([*common, *question.model]), 1), Launch())
    write_model(job, folder / "model", device)
    for path in job.corpus.tokenizer_folder.iterdir():
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    targets, slots = write_batches(job, folder / "batches.safetensors", question.steps)
    if question.longest is not None:
        write_documents(job, folder / "corpus" / "all.jsonl", folder / "documents.json")
    given = {
        "folder": str(folder),
        "device": device,
        "backend": "inductor" if device == "cuda" else "eager",
        "attention": "sdpa" if type(job.skeleton.model)._supports_sdpa else "eager",
        "task": job.skeleton.task,
        "steps": question.steps,
        "micro_batch": question.micro_batch,
        "documents": None if question.longest is None else 8 * question.micro_batch,  # of a mean of an eighth of a row
        "targets": targets,
        "slots": None if question.longest else slots,
        "overrides": [*common, "model=pretrained", f"model.path={folder / 'model'}"],
        "faster": question.faster,
    }
    (folder / "job.json").write_text(json.dumps(given))
    return {"parameters": job.skeleton.num_parameters, "targets_per_step": targets, "ours_with": question.faster}


def run(name: str, folder: Path, number: int, program: Sequence[str] = (str(HERE / "gpu_contenders.py"),)) -> dict[str, Any]:
    """One contender in a fresh process; the wall time of the whole command is beside what it says."""
    answer, log = folder / f"answer-{number}.json", folder / f"log-{number}.txt"
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    begun = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, *program, name, str(folder), str(answer)]
        code = subprocess.run(command, env=variables, stdout=output, stderr=output).returncode
    if code:
        raise SystemExit(f"{name} ended with {code}:\n{log.read_text()[-4000:]}")
    return json.loads(answer.read_text()) | {"command_seconds": time.monotonic() - begun}


def gate(answers: dict[str, dict[str, Any]], question: Question) -> dict[str, float]:
    """The largest relative difference of each one's first losses from ours, or of their means.

    Raises:
        SystemExit: they do not train the same, so that no comparison would mean anything.
    """
    ours, found = answers["isotrain"]["losses"][:GATE_STEPS], {}
    for name, answer in answers.items():
        theirs = answer["losses"][:GATE_STEPS]
        if not question.same_draws:
            ours, theirs = [statistics.mean(ours)], [statistics.mean(theirs)]
        found[name] = max(abs(a - b) / abs(b) for a, b in zip(theirs, ours, strict=True))
        if not found[name] <= question.tolerance:
            raise SystemExit(f"{name}: its losses differ from ours by {found[name]:.2e}, more than {question.tolerance:.0e}. No numbers.")
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One contender's numbers: medians over intervals after the warm-up and over rounds."""
    kept = [one["seconds"][min(WARMUP // LOG_EVERY, len(one["seconds"]) - 1) :] for one in rounds]
    speeds = [one["targets"] * LOG_EVERY / statistics.median(seconds) for one, seconds in zip(rounds, kept, strict=True)]
    used = [share for one in rounds for share in one.get("mfu", [])[WARMUP:] if share is not None]
    return {
        "tokens_per_second": statistics.median(speeds),
        "slots_per_second": statistics.median(speeds) * rounds[0]["slots"] / rounds[0]["targets"] if rounds[0]["slots"] else None,
        "seconds_per_step": statistics.median(statistics.median(seconds) / LOG_EVERY for seconds in kept),
        "rounds": speeds,
        "spread": max(speeds) / min(speeds) - 1,
        "interval_seconds": [one["seconds"] for one in rounds],
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in rounds),
        "mfu": statistics.median(used) if used else None,
        "command_seconds": [one["command_seconds"] for one in rounds],
        "losses": rounds[0]["losses"],
    }


def race(question: Question, device: str, rounds: int) -> dict[str, Any]:
    """Lets all run in turn, compares their losses, and judges the goals."""
    absent = [name for name in question.contenders if "liger" in name and importlib.util.find_spec("liger_kernel") is None]
    names = ["isotrain", *(name for name in question.contenders if name not in absent)]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        setting = make_job(question, Path(folder), device)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                answers[name].append(run(name, Path(folder), number))
                speed = summary(answers[name])["rounds"][-1]
                print(f"round {number + 1}: {name} {speed:,.0f} labels/s", flush=True)
            differences = gate({name: given[number] for name, given in answers.items()}, question)
    contenders = {name: summary(given) for name, given in answers.items()}
    unsteady = [name for name in contenders if name != "isotrain" and contenders[name]["spread"] > SPREAD]
    return {
        "what": question.what,
        **measured_on(device),
        "setting": {**asdict(question), **setting, "rounds": rounds},
        "gate": {"steps": GATE_STEPS, "largest_relative_difference_of_loss": differences, "allowed": question.tolerance},
        "absent": absent,
        "unsteady": unsteady,
        "contenders": contenders,
        "goals": [goal.judge(contenders) for goal in question.goals],
    }


def measured_on(device: str) -> dict[str, Any]:
    """What ``machine`` says, with the device named."""
    import torch

    named = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {**machine("torch", "transformers"), "device": named}


def ask(description: str | None) -> argparse.Namespace:
    """The command line's options; without a GPU only a rehearsal goes."""
    import torch

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="the same code at a tiny size on the CPU; writes no result")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU here: add --rehearse to try it at a tiny size on the CPU")
    options.device = "cpu" if options.rehearse else "cuda"
    options.rounds = 1 if options.rehearse else options.rounds
    return options


def keep(name: str, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes the result, unless this was a rehearsal."""
    for goal in results["goals"]:
        print(f"goal {goal['number']} {goal['words']}: {goal['value'] if goal['value'] is None else round(goal['value'], 4)}")
    if options.rehearse:
        print("rehearsed: nothing is written")
        return
    options.out.mkdir(exist_ok=True, parents=True)
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


def main(question: Question, description: str | None) -> None:
    """The whole of a benchmark that is a race."""
    options = ask(description)
    asked = rehearsed(question) if options.rehearse else question
    keep(question.name, race(asked, options.device, options.rounds), options)
