"""Storage that fails while a run writes: told in plain words, exit 8, and what was there before is intact."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import pytest

from tests.contracts.tasks import layout
from tests.faults.door import Guests, at_step, until
from trainer.checkpoint import verify
from trainer.testing import assert_same_curve, last_wins, read_curve, train_curve


@pytest.fixture
def saving(tiny):
    return [*tiny, "train.steps=12", "train.log_every=2", "checkpoint.every=4", "optimizer.schedule=constant"]


def allow(size: int) -> None:
    """From now on no file of this process may grow beyond ``size``, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def small_files(rank: int, victim: int, step: int, size: int, last: Path | None = None) -> None:
    """Sabotage: no file may grow beyond ``size`` from ``step`` on, when the checkpoint ``last`` is there."""

    def act() -> None:
        until(lambda: last is None or last.exists())
        allow(size)

    at_step(rank, victim, step, act)


BACKGROUND = "checkpoint.background=true"
OTHERS = (("zero3", 2, 1), ("fsdp", 2, 1), ("ddp", 2, 0), ("tensor", 2, 1), ("pipeline", 2, 1))


@pytest.mark.parametrize(
    ("strategy", "ranks", "victim", "more"),
    [
        ("fsdp", 2, 1, [BACKGROUND]),
        ("single", 1, 0, []),
        *(pytest.param(*cell, [], marks=pytest.mark.slow) for cell in OTHERS),
        *(pytest.param(*cell, [BACKGROUND], marks=pytest.mark.slow) for cell in (("single", 1, 0), OTHERS[0], *OTHERS[2:])),
    ],
)
def test_a_disk_that_is_full_in_a_save(saving, tmp_path, strategy, ranks, victim, more):
    arguments = last_wins([*saving, *layout(strategy), *more])
    last = tmp_path / "run" / "checkpoints" / "step-4"
    seen = Guests(tmp_path / "guests", tmp_path / "run", ranks, arguments, small_files, victim, 6, 20_000, last).wait()
    assert seen.codes == [8] * ranks
    assert seen.ended == {"code": 8, "sentence": seen.ended["sentence"]}
    for words in ("step-8 could not be written", "exceed the largest allowed size", "step-4 is intact", "run the same command again"):
        assert words in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: ") == 1 and seen.ended["sentence"] in seen.terminal
    assert "Traceback (" not in seen.terminal
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-4"]
    assert verify.problems(tmp_path / "run" / "checkpoints" / "step-4") == []
    resumed = train_curve(arguments, tmp_path / "run", ranks)
    assert_same_curve(resumed, train_curve(arguments, tmp_path / "whole", ranks), loss=0, grad_norm=0)


@pytest.mark.parametrize("more", [[], pytest.param([BACKGROUND], marks=pytest.mark.slow)], ids=["waiting", "background"])
def test_a_disk_that_is_full_for_the_metrics(saving, tmp_path, more):
    arguments = [*saving, "strategy=ddp", *more]
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, arguments, small_files, 0, 5, 1800).wait()  # what is printed is a file too
    assert seen.codes == [8, 8] and seen.ended["code"] == 8
    assert "could not be written" in seen.ended["sentence"] and "newest checkpoint is intact" in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: ") == 1
    assert "Traceback (" not in seen.terminal and "Exception ignored" not in seen.terminal
    assert_same_curve(train_curve(arguments, tmp_path / "run", 2), train_curve(arguments, tmp_path / "whole", 2), loss=0, grad_norm=0)


def block_save(rank: int, run_dir) -> None:
    """Puts a file where the second checkpoint is to be written."""

    def act() -> None:
        until((run_dir / "checkpoints" / "step-4").exists)  # a thread that stands back may still be writing it
        shutil.move(run_dir / "checkpoints", run_dir / "elsewhere")
        (run_dir / "checkpoints").write_text("in the way")

    at_step(rank, 0, 6, act)


@pytest.mark.parametrize("more", [[], pytest.param([BACKGROUND], marks=pytest.mark.slow)], ids=["waiting", "background"])
def test_a_folder_that_vanishes_while_training(saving, tmp_path, more):
    run_dir = tmp_path / "run"
    seen = Guests(tmp_path / "guests", run_dir, 2, [*saving, "strategy=fsdp", *more], block_save, run_dir).wait()
    assert seen.codes == [8, 8]
    assert "step-8 could not be written" in seen.ended["sentence"] and "Not a directory" in seen.ended["sentence"]
    (run_dir / "checkpoints").unlink()
    shutil.move(run_dir / "elsewhere", run_dir / "checkpoints")
    assert train_curve([*saving, "strategy=fsdp"], run_dir, 2)[-1]["step"] == 12


@pytest.mark.parametrize("place", ["file", "below a file", "/proc/isotrain"])
def test_a_run_directory_that_cannot_be(saving, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    run_dir = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "run"}.get(place, Path(place))
    seen = Guests(tmp_path / "guests", run_dir, 1, saving).wait()
    assert seen.codes == [8]
    assert f"isotrain: run.dir={run_dir} cannot be" in seen.terminal and "choose another run.dir" in seen.terminal
    assert "Traceback (" not in seen.terminal
    assert (tmp_path / "file").read_text() == "in the way"


def small_disk(rank: int, step: int, free: int) -> None:
    """From ``step`` on the disk has ``free`` bytes left."""
    from trainer.checkpoint import storage

    def shrink() -> None:
        storage.free_bytes = lambda folder: free

    at_step(rank, 0, step, shrink)


@pytest.mark.parametrize("more", [[], [BACKGROUND]], ids=["waiting", "background"])
def test_what_does_not_fit_is_not_begun(saving, tmp_path, more):
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*saving, "strategy=fsdp", *more], small_disk, 6, 10_000).wait()
    assert seen.codes == [8, 8]
    sentence = seen.ended["sentence"]
    assert "step-8 could not be written" in sentence and "the disk is full (" in sentence and "10.0 kB free" in sentence
    assert "step-4 is intact" in sentence
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-4"]


def small_from_the_start(rank: int, free: int) -> None:
    from trainer.checkpoint import storage

    storage.free_bytes = lambda folder: free


def test_room_for_fewer_checkpoints_than_are_kept_is_said_before_training(saving, tmp_path):
    arguments = [*saving, "checkpoint.keep=5", "run.quiet=false"]
    seen = Guests(tmp_path / "guests", tmp_path / "run", 1, arguments, small_from_the_start, 2_000_000).wait()
    assert seen.codes == [0]
    assert seen.terminal.count("Warning: ") == 1
    assert (
        "has 2.0 MB free, and checkpoints will take" in seen.terminal and "(3 of " in seen.terminal and "checkpoint.keep=5" in seen.terminal
    )


def full_log(rank: int) -> None:
    """Every line of the log fails to be written."""
    from trainer.distributed import log

    original = log.log_to

    def log_to(*arguments) -> None:
        original(*arguments)
        (handler,) = log.LOGGER.handlers
        with contextlib.suppress(OSError):
            handler.stream.close()
        handler.stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115, PTH123

    import trainer.run

    trainer.run.log_to = log_to


def test_a_log_that_cannot_be_written_stops_nobody(saving, tmp_path):
    seen = Guests(tmp_path / "guests", tmp_path / "run", 1, saving, full_log).wait()
    assert seen.codes == [0]
    assert "Traceback (" not in seen.terminal and "Logging error" not in seen.terminal
    assert len(read_curve(tmp_path / "run")) == 12
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 0
