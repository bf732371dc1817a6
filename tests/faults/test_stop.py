"""Requests to stop: a checkpoint is written, nothing is lost, and the run goes on as if nothing had been."""

import json
import os
import signal
import sys
import time

import pytest

from tests.faults.door import Guests, at_step, until
from trainer.testing import Ranks, assert_same_curve, last_wins, read_curve, train_curve, train_here


@pytest.mark.parametrize(
    ("number", "ranks", "workers"),
    [(signal.SIGTERM, 2, 2), (signal.SIGINT, 1, 0), pytest.param(signal.SIGUSR1, 2, 0, marks=pytest.mark.slow)],
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
        if (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").read_text().count('"train"') >= step:
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


class SlowImports:
    """An import hook under which ``trainer.run`` takes for ever; ``begun`` is there once it has begun."""

    def __init__(self, begun):
        self._begun = begun

    def find_spec(self, name, path, target=None):
        if name == "trainer.run":
            self._begun.touch()
            time.sleep(600)


def in_imports(rank, folder):
    del sys.modules["trainer.run"]
    sys.meta_path.insert(0, SlowImports(folder / f"importing-{rank}"))


def in_building(rank, folder):
    """Sabotage: building the engine waits until ``folder`` holds a file ``go``."""
    import trainer.run

    original = trainer.run.build_engine

    def build(job, **options):
        (folder / f"building-{rank}").touch()
        until((folder / "go").exists)
        return original(job, **options)

    trainer.run.build_engine = build


def test_a_signal_before_the_ranks_have_met_ends_them_at_once(tiny, tmp_path):
    guests = Guests(tmp_path / "guests", tmp_path / "run", 2, tiny, in_imports, tmp_path)
    guests.wait_for(lambda: (tmp_path / "importing-0").exists() and (tmp_path / "importing-1").exists())
    guests.job.send(signal.SIGTERM)
    seen = guests.wait(5)
    assert seen.codes == [4, 4]
    assert seen.terminal == "isotrain: Stopped by SIGTERM before training began; nothing is lost. Run the same command again.\n"
    assert train_curve([*tiny, "train.steps=6"], tmp_path / "run")


def test_a_signal_while_the_engine_is_built_ends_before_the_first_step(tiny, tmp_path):
    guests = Guests(tmp_path / "guests", tmp_path / "run", 2, [*tiny, "strategy=ddp"], in_building, tmp_path)
    guests.wait_for(lambda: (tmp_path / "building-0").exists() and (tmp_path / "building-1").exists())
    guests.job.send(signal.SIGTERM, rank=1)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    seen = guests.wait()
    assert seen.codes == [4, 4]
    assert seen.ended == {"code": 4, "sentence": "Stopped by SIGTERM before step 1; nothing is lost. Run the same command again to go on."}
    assert seen.terminal.count(seen.ended["sentence"]) == 1
    assert read_curve(tmp_path / "run") == []


def impatient(rank):
    """Sabotage: the fifth step takes for ever, and half a second makes another request of a signal."""
    from trainer.distributed import stop

    stop.SAME_REQUEST_SECONDS = 0.5
    at_step(rank, rank, 5, lambda: time.sleep(600))


def test_a_second_signal_insists(tiny, tmp_path):
    guests = Guests(tmp_path / "guests", tmp_path / "run", 1, [*tiny, "train.log_every=1", "checkpoint.every=2"], impatient)
    guests.wait_for(guests.reached(4))
    time.sleep(0.3)
    guests.job.send(signal.SIGINT)
    guests.job.send(signal.SIGINT)
    time.sleep(1.0)
    assert guests.job.running, "two signals in a row are one request"
    guests.job.send(signal.SIGINT)
    seen = guests.wait(5)
    assert seen.codes == [3] and seen.ended["code"] == 3
    assert "second SIGINT" in seen.ended["sentence"] and seen.terminal.count(seen.ended["sentence"]) == 1
    assert len(train_curve(tiny, tmp_path / "run")) == 20


def stop_in_evaluation(rank):
    """Sabotage: a request to stop comes in the middle of the second evaluation."""
    from trainer.engine.native import NativeEngine

    original, calls = NativeEngine.score, []

    def score(self, batch):
        calls.append(None)
        if rank == 1 and len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    NativeEngine.score = score


def test_a_signal_during_evaluation(tiny, tmp_path):
    more = ["strategy=fsdp", "train.micro_batch=16", "train.log_every=2", "train.evaluate_every=4", "train.evaluate_samples=128"]
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*tiny, *more], stop_in_evaluation).wait()
    assert seen.codes == [4, 4] and "Stopped by SIGTERM after step" in seen.ended["sentence"]
    stopped = read_curve(tmp_path / "run")[-1]["step"]
    assert stopped in (6, 10), "evaluations take 4 batches each at steps 4 and 8, and the request holds from the next log step on"
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped}").is_dir()
    resumed = train_curve([*tiny, *more], tmp_path / "run", 2)
    assert_same_curve(resumed, train_curve([*tiny, *more], tmp_path / "whole", 2), loss=0, grad_norm=0)


def in_the_last_interval(rank):
    at_step(rank, 0, 19, lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_run_that_finishes_anyway_is_finished(tiny, tmp_path):
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*tiny, "strategy=ddp", "train.log_every=10"], in_the_last_interval).wait()
    assert seen.codes == [0, 0] and seen.ended == {"code": 0, "sentence": "Step 20 of 20 is done."}
    assert "Stopped" not in seen.terminal and "final loss" in seen.terminal
