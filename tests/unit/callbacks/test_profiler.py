"""A window under torch's profiler: the steps that were asked for, on every rank, and no run that fails because of it."""

import gzip
import json

import pytest
import torch

from trainer.callbacks.config import TrackConfig
from trainer.callbacks.profiler import Profiler
from trainer.config import load
from trainer.errors import Refused
from trainer.testing import train_curve


def names(file):
    return {event["name"] for event in json.loads(gzip.open(file).read())["traceEvents"]}


def test_every_rank_writes_the_steps_that_were_asked_for(tiny, tmp_path):
    curve = train_curve(
        [*tiny, "strategy=ddp", "train.steps=6", "optimizer.warmup_steps=1", "track.profile_from=2", "track.profile_steps=2"], tmp_path, 2
    )
    assert len(curve) == 6
    files = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert files == [f"rank-{rank}.steps-2-3.{end}" for rank in (0, 1) for end in ("json.gz", "txt")]
    for rank in (0, 1):
        seen = names(tmp_path / f"profile/rank-{rank}.steps-2-3.json.gz")
        assert {"step 2", "step 3", "aten::mm"} <= seen and not {"step 1", "step 4"} & seen
        assert "aten::mm" in (tmp_path / f"profile/rank-{rank}.steps-2-3.txt").read_text()


def test_a_session_that_ends_inside_the_window_keeps_what_it_saw(tiny, tmp_path):
    profiled = [*tiny, "train.steps=6", "optimizer.warmup_steps=1", "track.profile_from=3", "track.profile_steps=4"]
    train_curve([*profiled, "train.stop_after=4"], tmp_path)
    train_curve(profiled, tmp_path)
    assert sorted(path.name for path in (tmp_path / "profile").glob("*.txt")) == ["rank-0.steps-3-4.txt", "rank-0.steps-5-6.txt"]


def test_a_session_behind_the_window_says_so(tmp_path):
    said = []
    profiler = Profiler.of(TrackConfig(profile_from=2), tmp_path, 0, torch.device("cpu"), said.append, 4)
    with profiler.watching(5):
        pass
    assert said == ["no profile: steps 2 to 4 (track.profile_from) are behind step 4, from which this session goes on"]
    Profiler.of(TrackConfig(profile_from=2), tmp_path, 0, torch.device("cpu"), said.append, 3)
    Profiler.of(TrackConfig(), tmp_path, 0, torch.device("cpu"), said.append, 3)
    assert len(said) == 1 and not (tmp_path / "profile").exists()


def test_what_cannot_be_written_is_said_and_left_out(tiny, tmp_path):
    (tmp_path / "profile").write_text("a file where the folder should be")
    assert (
        len(train_curve([*tiny, "train.steps=4", "optimizer.warmup_steps=1", "track.profile_from=2", "track.profile_steps=1"], tmp_path))
        == 4
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["track.profile_from=11", "train.steps=10", "optimizer.warmup_steps=1"], "track.profile_from=11 is after the last step, 10"),
        (["track.profile_steps=5"], "track.profile_steps=5 has no effect without track.profile_from"),
    ],
)
def test_a_window_that_never_opens_is_refused(arguments, sentence):
    with pytest.raises(Refused, match=sentence):
        load(arguments, 1)
