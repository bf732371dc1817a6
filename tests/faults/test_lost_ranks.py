"""A rank that fails or dies: the others end within seconds, with the name of the rank that was first and its reason, told once."""

import signal
import time

import pytest

from tests.faults.door import Guests, at_step, die, fail
from trainer.testing import train_curve

RANKS = 3


@pytest.fixture
def long(tiny):
    return [
        *tiny,
        "train.steps=100000",
        "train.log_every=2",
        "strategy=fsdp",
        "train.micro_batch=8",
        "checkpoint.every=4",
        "checkpoint.keep=1",
    ]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_that_fails_first_is_named_by_all(long, tmp_path, victim):
    guests = Guests(tmp_path / "guests", tmp_path / "run", RANKS, long, at_step, victim, 6, fail)
    seen = guests.wait()
    assert seen.codes == [3] * RANKS
    assert seen.ended["code"] == 3
    assert f"on rank {victim}: ValueError: the sabotaged step." in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: ") == 1 and seen.ended["sentence"] in seen.terminal
    assert "Traceback (" not in seen.terminal
    logs = [(tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text() for rank in range(RANKS)]
    assert all("Traceback (" in log for log in logs)
    assert [rank for rank, log in enumerate(logs) if "ValueError: the sabotaged step" in log] == [victim]
    assert train_curve([*long, "train.stop_after=5"], tmp_path / "run", 1)[-1]["step"] == 5


def unable_to_write(rank):
    """Sabotage: the model of rank 1 cannot write a text."""
    from trainer import run

    def generate(*arguments, **named):
        raise RuntimeError("out of memory")

    if rank == 1:
        run.generate_text = generate


def test_a_rank_that_cannot_write_a_text_on_the_way_ends_the_run(long, tmp_path):
    """The others wait for its part of every weight: it cannot go on to the next step alone."""
    writing = [*long, "sample.every_evaluation=true", "train.evaluate_every=4", "data.validation_fraction=0.1"]
    seen = Guests(tmp_path / "guests", tmp_path / "run", RANKS, writing, unable_to_write).wait()
    assert seen.codes == [3] * RANKS
    assert "on rank 1: RuntimeError: out of memory" in seen.ended["sentence"]


@pytest.mark.parametrize("victim", [0, 1], ids=["the host of the store", "another"])
def test_a_killed_rank_is_named(long, tmp_path, victim):
    guests = Guests(tmp_path / "guests", tmp_path / "run", RANKS, long, at_step, victim, 6, die)
    guests.wait_for(guests.reached(4))
    process = guests.job.pids[victim]
    seen = guests.wait()
    assert seen.codes == [-signal.SIGKILL if rank == victim else 3 for rank in range(RANKS)]
    assert seen.seconds < 10
    assert seen.ended["code"] == 3
    assert f"rank {victim} (process {process} on " in seen.ended["sentence"] and "ended without a word" in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: ") == 1 and seen.ended["sentence"] in seen.terminal
    assert "Traceback (" not in seen.terminal


def die_in_save(rank, victim):
    from trainer.checkpoint import checkpointer

    original = checkpointer.write_shards
    checkpointer.write_shards = lambda *arguments: die() if rank == victim else original(*arguments)


@pytest.mark.parametrize("background", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_killed_in_a_save_keeps_nobody_waiting(long, tmp_path, background):
    arguments = [*long, f"checkpoint.background={str(background).lower()}"]
    guests = Guests(tmp_path / "guests", tmp_path / "run", RANKS, arguments, die_in_save, 1)
    guests.wait_for(guests.reached(4))
    seen = guests.wait()
    assert seen.codes == [3, -signal.SIGKILL, 3] and seen.seconds < 10
    assert "rank 1 (process " in seen.ended["sentence"]
    assert not (tmp_path / "run" / "checkpoints" / "step-4").exists()


def stuck():
    while True:
        time.sleep(60)  # as a rank on a GPU that waits for a dead one


def stuck_or_dead(rank):
    at_step(rank, rank, 6, die if rank == 1 else stuck)


def test_a_launcher_that_cleans_up_after_a_lost_rank_is_understood(long, tmp_path):
    guests = Guests(tmp_path / "guests", tmp_path / "run", 2, [*long, "train.log_every=1"], stuck_or_dead)
    guests.wait_for(guests.reached(5))
    time.sleep(0.2)
    guests.job.send(signal.SIGTERM, rank=0)
    seen = guests.wait(20)
    assert 4 < seen.seconds < 10
    assert seen.ended["code"] == 3 and "rank 1 (process " in seen.ended["sentence"]
    assert seen.ended["sentence"] in seen.terminal and "Stopped by" not in seen.terminal
