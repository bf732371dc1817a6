"""A real torchrun: what it starts dies with it, and what it is told reaches the run. Few tests, each with several facts: a launch is slow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.door import until
from trainer.distributed.launch import ADDRESS, RANKS
from trainer.testing import last_wins, read_curve, train_curve

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in (*RANKS, *ADDRESS)} | {"OMP_NUM_THREADS": "1"}


class Torchrun:
    """One torchrun of 2 ranks, with what it prints kept in a file."""

    def __init__(self, folder: Path, arguments: list[str], *options: str):
        self.output = folder / f"terminal-{len(list(folder.glob('terminal-*')))}"
        self.run_dir = folder / "run"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, "train.py"]
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, *last_wins([*arguments, f"run.dir={self.run_dir}"])], cwd=ROOT, env=ENVIRONMENT, stdout=stream, stderr=stream
            )

    @property
    def terminal(self) -> str:
        return self.output.read_text()

    def started(self) -> list[int]:
        """Every process below it."""
        return below(self.process.pid)

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            assert self.process.poll() is None, self.terminal
            return (self.run_dir / "metrics.jsonl").exists() and last_step(self.run_dir) >= step

        until(reached)

    def kill(self) -> None:
        """SIGKILL to the launcher alone; what it started must follow by itself."""
        self.process.kill()
        self.process.wait()


def below(pid: int) -> list[int]:
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [*children, *(other for child in children for other in below(child))]


def running(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    return [pid for pid in pids if (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"]


def last_step(run_dir: Path) -> int:
    return max((line["step"] for line in read_curve(run_dir)), default=0)


def all_end(pids: list[int], seconds: float) -> list[int]:
    """Waits; returns those that have not ended."""
    deadline = time.monotonic() + seconds
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = running(pids)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


@pytest.fixture
def long(tiny):
    return [
        *tiny,
        "train.steps=100000",
        "+strategy=fsdp",
        "train.micro_batch=8",
        "data.workers=1",
        "checkpoint.every=10",
        "train.log_every=2",
    ]


@pytest.mark.slow
def test_a_killed_launcher_a_second_run_and_a_request_to_stop(long, tmp_path):
    first = Torchrun(tmp_path, long)
    try:
        first.wait_for_step(25)
        second = Torchrun(tmp_path, long)
        assert second.process.wait(60) == 1  # torchrun turns every failure into 1
        assert second.terminal.count("is in use by another run") == 1 and second.terminal.count("Nothing was started.") == 1
        assert f"process {first.started()[0]}" in second.terminal or f"process {first.started()[1]}" in second.terminal
        started = first.started()
        assert len(started) >= 4, "two ranks and their loader workers"
    finally:
        first.kill()
    assert all_end(started, 1.0) == []

    again = Torchrun(tmp_path, long)
    again.wait_for_step(last_step(tmp_path / "run") + 20)
    again.process.terminate()
    assert again.process.wait(30) == 1
    assert "resuming from" in again.terminal
    stopped = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert stopped["code"] == 4 and "Stopped by SIGTERM after step" in stopped["sentence"]
    assert (
        again.terminal.count(stopped["sentence"]) == 1 and "ranks" not in again.terminal.split(stopped["sentence"])[1].split("Traceback")[0]
    )
    step = last_step(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}" / "manifest.json").exists()
    curve = train_curve([*long, f"train.stop_after={step + 5}"], tmp_path / "run", 2)
    assert [line["step"] for line in curve] == list(range(1, step + 6))


@pytest.mark.parametrize("after", [0.0, 1.5], ids=["at once", "while importing"])
def test_a_launcher_killed_before_training(long, tmp_path, after):
    launcher = Torchrun(tmp_path, long)
    try:
        until(lambda: len(launcher.started()) >= 2)
        time.sleep(after)
        started = launcher.started()
    finally:
        launcher.kill()
    assert all_end(started, 5.0) == [], "an interpreter that has just begun to start must get as far as to look for its launcher"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_sigusr1_reaches_the_run_if_torchrun_is_told_to_pass_it_on(long, tmp_path):
    job = Torchrun(tmp_path, long, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1")
    job.wait_for_step(5)
    job.process.send_signal(signal.SIGUSR1)
    assert job.process.wait(30) == 1
    stopped = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert stopped["code"] == 4 and "Stopped by SIGUSR1" in stopped["sentence"]


@pytest.mark.slow
def test_what_torchrun_shows_of_a_lost_rank(long, tmp_path):
    job = Torchrun(tmp_path, long)
    job.wait_for_step(5)
    rank = int((tmp_path / "run" / ".lock").read_text().split('"pid": ')[1].split(",")[0])
    os.kill(rank, signal.SIGKILL)  # rank 0, which holds the lock
    assert job.process.wait(30) == 1
    ended = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert ended["code"] == 3 and f"rank 0 (process {rank} on " in ended["sentence"]
    assert job.terminal.count(ended["sentence"]) == 1
