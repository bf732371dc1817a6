"""Where a run goes on from: ``checkpoint.resume``, ``checkpoint.keep``, ``train.stop_after``, and a train.steps that has grown."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.faults.door import Guests
from trainer import cli
from trainer.checkpoint import verify
from trainer.errors import Refused
from trainer.session.identity import require_one_run
from trainer.testing import assert_same_curve, last_wins, read_curve, train_curve


@pytest.fixture
def flat(tiny):
    """Ten steps whose learning rate does not depend on how many there are."""
    return [*tiny, "train.steps=10", "optimizer.schedule=constant", "train.log_every=2"]


def sentence(run_dir):
    return json.loads((run_dir / "exit.json").read_text())["sentence"]


def checkpoints(run_dir):
    return [path.name for path in reversed(verify.newest(run_dir / "checkpoints"))]


def test_never_begins_a_run_and_never_goes_on_with_one(flat, tmp_path):
    never = [*flat, "checkpoint.resume=never", "train.stop_after=4"]
    assert len(train_curve(never, tmp_path / "run")) == 4
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*never, "strategy=ddp"]).wait()
    assert seen.codes == [2, 2] and seen.ended["code"] == 2
    assert "checkpoint.resume=never, but" in seen.ended["sentence"] and "checkpoint.resume=latest" in seen.ended["sentence"]
    assert seen.terminal.count("isotrain: refused, 1 problem:") == 1
    assert checkpoints(tmp_path / "run") == ["step-4"] and len(read_curve(tmp_path / "run")) == 4
    assert len(train_curve([*flat], tmp_path / "run")) == 10


def test_another_runs_checkpoint_is_a_start_and_ones_own_wins(flat, tmp_path):
    whole = train_curve([*flat, "train.steps=12"], tmp_path / "whole")
    train_curve([*flat, "train.stop_after=4", "checkpoint.every=2"], tmp_path / "other")
    for resume in (tmp_path / "other" / "checkpoints" / "step-2", tmp_path / "other"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        from_there = [*flat, f"checkpoint.resume={resume}"]
        start = 2 if resume.name == "step-2" else 4
        assert_same_curve(train_curve([*from_there, "train.stop_after=7"], tmp_path / "run"), whole[start:7], loss=0, grad_norm=0)
        seen = Guests(tmp_path / "guests", tmp_path / "run", 1, from_there).wait()
        assert f"resuming from {tmp_path / 'run' / 'checkpoints' / 'step-7'} at step 7" in seen.terminal
        assert_same_curve(read_curve(tmp_path / "run"), whole[start:10], loss=0, grad_norm=0)
        assert_same_curve(train_curve([*from_there, "train.steps=12"], tmp_path / "run"), whole[start:12], loss=0, grad_norm=0)
    assert checkpoints(tmp_path / "other") == ["step-2", "step-4"] and len(read_curve(tmp_path / "other")) == 4


def test_a_place_without_a_checkpoint_and_a_checkpoint_of_another_run_are_refused(flat, tmp_path):
    (tmp_path / "empty").mkdir()
    seen = Guests(tmp_path / "guests", tmp_path / "run", 2, [*flat, "strategy=ddp", f"checkpoint.resume={tmp_path / 'empty'}"]).wait()
    assert seen.codes == [2, 2] and f"{tmp_path / 'empty'} holds no checkpoint" in seen.ended["sentence"]
    train_curve([*flat, "train.stop_after=2"], tmp_path / "other")
    changed = [*flat, "train.seed=5", "train.global_batch=8", "model.hidden_size=64", f"checkpoint.resume={tmp_path / 'other'}"]
    seen = Guests(tmp_path / "guests", tmp_path / "run", 1, changed).wait()
    assert seen.codes == [2] and "3 problems" in seen.terminal
    assert all(f"{key} was " in seen.ended["sentence"] for key in ("train.seed", "train.global_batch", "model"))
    assert checkpoints(tmp_path / "run") == []


def test_keep(flat, tmp_path):
    train_curve([*flat, "checkpoint.every=3", "checkpoint.keep=2"], tmp_path / "two")
    assert checkpoints(tmp_path / "two") == ["step-9", "step-10"]
    train_curve([*flat, "checkpoint.every=3", "checkpoint.keep=null"], tmp_path / "all")
    assert checkpoints(tmp_path / "all") == ["step-3", "step-6", "step-9", "step-10"]


def test_stopping_after_a_step_and_going_on_again_and_again(flat, tmp_path):
    cosine = [*flat, "optimizer.schedule=cosine"]
    whole = train_curve(cosine, tmp_path / "whole")
    for stop in (3, 4, 4):
        assert len(train_curve([*cosine, f"train.stop_after={stop}"], tmp_path / "run")) == stop
    assert "step 4 of 10 is done" in sentence(tmp_path / "run") and "raise train.stop_after" in sentence(tmp_path / "run")
    assert_same_curve(train_curve(cosine, tmp_path / "run"), whole, loss=0, grad_norm=0)
    train_curve(cosine, tmp_path / "run")
    assert "step 10 of 10 is done" in sentence(tmp_path / "run") and "raise train.steps" in sentence(tmp_path / "run")


def test_a_refused_rerun_replaces_the_exit_record_of_the_session_before(tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    train_curve([*tiny, "train.stop_after=2"], run_dir)
    assert cli.main(["train", f"run.dir={run_dir}", "train.stepz=5"]) == 2
    ended = json.loads((run_dir / "exit.json").read_text())
    assert ended["code"] == 2 and "train.stepz" in ended["sentence"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert cli.main(["train", f"run.dir={elsewhere}", "train.stepz=5"]) == 2
    assert not list(elsewhere.iterdir()), "a folder that is no run directory is left alone"


def test_a_step_back_within_a_run_is_refused(flat, tmp_path):
    run_dir = tmp_path / "run"
    train_curve([*flat, "checkpoint.every=2", "train.stop_after=4"], run_dir)
    with pytest.raises(AssertionError, match="one of this run's own checkpoints"):
        train_curve([*flat, f"checkpoint.resume={run_dir / 'checkpoints' / 'step-2'}"], run_dir)
    assert "step-4" in checkpoints(run_dir)


def test_ranks_that_were_not_started_alike_are_refused_by_key():
    alike = {"data": "a", "train.seed": 0}
    require_one_run([alike, dict(alike)])
    with pytest.raises(Refused, match="data is not the same on rank 1 as on rank 0"):
        require_one_run([alike, alike | {"data": "b"}, alike | {"data": "c"}])


@pytest.mark.slow
def test_a_run_without_a_run_dir_says_how_it_is_found_again(flat, tmp_path):
    command = [sys.executable, "-m", "trainer", "train", *last_wins(flat)]
    near = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    go = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, env=near)
    first = go([*command, "train.stop_after=4"])
    (run_dir,) = (tmp_path / "runs").iterdir()
    words = f"Run the same command again with run.dir=runs/{run_dir.name} without train.stop_after"
    assert words in " ".join(first.stdout.split()), first.stdout + first.stderr
    again = go([*command, f"run.dir=runs/{run_dir.name}"])
    assert "at step 4" in again.stdout and len(read_curve(run_dir)) == 10
