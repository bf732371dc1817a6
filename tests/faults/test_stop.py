"""Requests to stop: a checkpoint is written, nothing is lost, and the run goes on as if nothing had been."""

import json
import signal
import time

import pytest

from trainer.testing import Ranks, assert_same_curve, last_wins, read_curve, train_curve, train_here


@pytest.mark.parametrize(
    ("number", "ranks", "workers"),
    [(signal.SIGTERM, 2, 2), (signal.SIGINT, 1, 0), (signal.SIGUSR1, 2, 0)],
    ids=["SIGTERM", "SIGINT", "SIGUSR1"],
)
def test_a_signal_saves_and_exits_four(tiny, tmp_path, number, ranks, workers):
    arguments = [*tiny, "train.steps=200", "train.log_every=5", f"data.workers={workers}", "optimizer.schedule=constant"]
    run_dir = tmp_path / "run"
    job = Ranks(train_here, ranks, last_wins([*arguments, f"run.dir={run_dir}"]))
    wait_for_step(run_dir, 5, job)
    job.send(number, rank=ranks - 1)  # one rank is asked; all must agree
    job.send(number, rank=0)
    assert job.results() == [4] * ranks
    ended = json.loads((run_dir / "exit.json").read_text())
    assert ended["code"] == 4 and number.name in ended["sentence"]
    stopped_at = read_curve(run_dir)[-1]["step"]
    assert 5 <= stopped_at < 200 and (run_dir / "checkpoints" / f"step-{stopped_at}").is_dir()
    stop = stopped_at + 10
    resumed = train_curve([*arguments, f"train.stop_after={stop}"], run_dir, ranks)
    whole = train_curve([*arguments, f"train.stop_after={stop}"], tmp_path / "whole", ranks)
    assert_same_curve(resumed, whole, loss=0, grad_norm=0)


def wait_for_step(run_dir, step, job):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and job.running:
        if (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run never got going")


def test_a_finished_run_says_so_and_stays(tiny, tmp_path):
    first = train_curve([*tiny, "train.steps=6"], tmp_path / "run")
    again = train_curve([*tiny, "train.steps=6"], tmp_path / "run")
    assert first == again
    assert "is finished" in json.loads((tmp_path / "run" / "exit.json").read_text())["sentence"]


def test_a_second_run_on_the_same_directory_is_refused(tiny, tmp_path):
    run_dir = tmp_path / "run"
    job = Ranks(train_here, 1, last_wins([*tiny, "train.steps=5000", f"run.dir={run_dir}"]))
    try:
        wait_for_step(run_dir, 5, job)
        with pytest.raises(AssertionError, match="is in use by another run"):
            train_curve(tiny, run_dir)
    finally:
        job.kill()
    assert train_curve([*tiny, "train.steps=5000", "train.stop_after=3"], run_dir)  # the lock died with its holder
