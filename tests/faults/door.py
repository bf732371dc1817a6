"""Ranks that go in by the front door, ``isotrain train``, with what they print kept in files, and what is done to them on the way."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.testing import Ranks, last_wins


def enter(folder: Path, arguments: list[str], sabotage: Callable[..., None] | None = None, *details: object) -> None:
    """What one rank does. What it prints ends up in ``folder``."""
    from trainer.cli import main

    rank = os.environ["RANK"]
    output = os.open(folder / f"terminal-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if sabotage is not None:
        sabotage(int(rank), *details)
    code = main(["train", *arguments])
    sys.stdout.flush()
    sys.exit(code)


@dataclass
class Seen:
    """What a user sees of a run that has ended: exit codes by rank (-9: killed), seconds, terminal, ``exit.json``."""

    codes: list[int | None]
    seconds: float
    terminal: str
    ended: dict


class Guests:
    """Ranks that ``enter``."""

    def __init__(self, folder: Path, run_dir: Path, ranks: int, arguments: list[str], *sabotage: object):
        self.folder, self.run_dir, self.ranks = folder, run_dir, ranks
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        self.job = Ranks(enter, ranks, folder, last_wins([*arguments, f"run.dir={run_dir}"]), *sabotage)

    def wait(self, seconds: float = 60.0) -> Seen:
        """Waits until all have left."""
        began = time.monotonic()
        while self.job.running and time.monotonic() - began < seconds:
            time.sleep(0.02)
        took = time.monotonic() - began
        still, codes = self.job.running, self.job.exit_codes
        self.job.kill()
        assert not still, f"still running after {seconds} s: {self.terminal()}"
        exit_record = self.run_dir / "exit.json"
        return Seen(codes, took, self.terminal(), json.loads(exit_record.read_text()) if exit_record.exists() else {})

    def terminal(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("terminal-*")))

    def wait_for(self, happened: Callable[[], bool], seconds: float = 60.0) -> None:
        """Waits until something has happened while the ranks run."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.job.running and time.monotonic() < deadline, self.terminal()
            time.sleep(0.01)

    def reached(self, step: int) -> Callable[[], bool]:
        """Whether ``metrics.jsonl`` holds ``step`` steps."""
        metrics = self.run_dir / "metrics.jsonl"
        return lambda: metrics.exists() and metrics.read_text().count('"train"') >= step


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.01)


def at_step(rank: int, victim: int, step: int, act: Callable[[], None]) -> None:
    """Sabotage: ``act`` when the rank ``victim`` begins the training step ``step``."""
    from trainer.trainer import Trainer

    original = Trainer.train_step

    def train_step(self: Trainer, number: int, micro_batches: list) -> object:
        if rank == victim and number == step:
            act()
        return original(self, number, micro_batches)

    Trainer.train_step = train_step


def fail() -> None:
    raise ValueError("the sabotaged step")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
