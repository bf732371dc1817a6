"""What can happen while a checkpoint is written beside training: nothing is hidden, lost or waited for longer than needed."""

import json
import signal
import time

import pytest

from tests.faults.door import Guests, at_step
from tests.faults.test_storage import small_files
from trainer.checkpoint import verify
from trainer.testing import assert_same_curve, read_curve, train_curve


@pytest.fixture
def saving(tiny):
    more = ["train.log_every=2", "checkpoint.every=4", "optimizer.schedule=constant", "strategy=fsdp", "run.quiet=false"]
    return [*tiny, *more, "checkpoint.background=true"]


def slow_disk(rank: int, victim: int, seconds: float) -> None:
    """Sabotage: on one rank every checkpoint takes its time."""
    from trainer.checkpoint import checkpointer

    original = checkpointer.write_shards

    def write(*arguments):
        time.sleep(seconds if rank == victim else 0.0)
        return original(*arguments)

    checkpointer.write_shards = write


def whole_ones(run_dir):
    """The steps of which a checkpoint is there, all of them found to be sound."""
    folders = verify.newest(run_dir / "checkpoints")
    assert all(verify.problems(folder) == [] for folder in folders)
    return [verify.step_of(folder) for folder in folders]


def test_a_disk_that_is_full_on_one_rank_ends_all_at_the_next_log_step(saving, tmp_path):
    arguments, last = [*saving, "train.steps=100000", "checkpoint.every=40"], tmp_path / "run" / "checkpoints" / "step-40"
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, arguments, small_files, 1, 50, 20_000, last).wait()
    assert seen.codes == [8, 8] and "step-80 could not be written" in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: ") == 1 and "Traceback (" not in seen.terminal
    assert "File too large" in (tmp_path / "run" / "logs" / "rank-1.log").read_text()
    assert whole_ones(tmp_path / "run") == [40]
    assert read_curve(tmp_path / "run")[-1]["step"] <= 120, "the next save came first"


def test_a_failure_in_the_last_checkpoint_is_not_taken_for_success(saving, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "step-4"
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*saving, "train.steps=8"], small_files, 1, 6, 20_000, last).wait()
    assert seen.codes == [8, 8] and seen.ended["code"] == 8
    assert whole_ones(tmp_path / "run") == [4]
    assert len(train_curve([*saving, "train.steps=8"], tmp_path / "run", 2)) == 8


@pytest.mark.slow
def test_saves_that_come_faster_than_they_are_written_wait_and_say_so_once(saving, tmp_path):
    arguments = [*saving, "train.steps=16", "train.log_every=4"]
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, arguments, slow_disk, 1, 1.0).wait()
    assert seen.codes == [0, 0]
    assert seen.terminal.count("Checkpoint step-4 was still being written when step-8 was due: training waited ") == 1
    assert seen.terminal.count("was still being written") == 1
    assert [f"checkpoints/step-{step}" in seen.terminal for step in (4, 8, 12, 16)] == [True] * 4
    assert whole_ones(tmp_path / "run") == [16, 12]


def test_a_request_to_stop_while_one_is_written_ends_with_a_checkpoint_of_its_own(saving, tmp_path):
    arguments = [*saving, "train.steps=1000", "checkpoint.every=40"]
    guests = Guests(tmp_path / "guests", tmp_path / "run", 2, arguments, slow_disk, 0, 1.0)
    guests.wait_for(lambda: (tmp_path / "run" / "checkpoints" / "step-40.partial").exists())
    guests.job.send(signal.SIGTERM)
    seen = guests.wait()
    assert seen.codes == [4, 4]
    stopped = read_curve(tmp_path / "run")[-1]["step"]
    assert f"after step {stopped} of 1000, with a checkpoint" in seen.ended["sentence"]
    assert whole_ones(tmp_path / "run")[0] == stopped >= 40
    resumed = train_curve([*arguments, f"train.stop_after={stopped + 6}"], tmp_path / "run", 2)
    assert_same_curve(resumed, train_curve([*arguments, f"train.stop_after={stopped + 6}"], tmp_path / "whole", 2), loss=0, grad_norm=0)


def spoil_gradients(rank: int) -> None:
    """Sabotage: files take a second, and in the sixth step weights become infinite."""
    from trainer.engine.native import NativeEngine

    slow_disk(rank, 0, 1.0)
    engines, init = [], NativeEngine.__init__

    def remember(self, *arguments, **options):
        init(self, *arguments, **options)
        engines.append(self)

    NativeEngine.__init__ = remember
    at_step(rank, rank, 6, lambda: engines[0]._named[0][1].data.fill_(float("inf")))


def test_training_that_fails_waits_for_what_was_sound(saving, tmp_path):
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*saving, "train.steps=100"], spoil_gradients).wait()
    assert seen.codes == [3, 3] and "was not applied" in seen.ended["sentence"]
    assert whole_ones(tmp_path / "run") == [4]
    assert json.loads((tmp_path / "run" / "checkpoints" / "step-4" / "state.json").read_text())["step"] == 4
