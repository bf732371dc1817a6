"""``kill -9`` at random instants: rerunning the same command always resumes, and the curve is bitwise the uninterrupted one."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from tests.contracts.tasks import layout
from trainer.checkpoint import verify
from trainer.testing import Ranks, last_wins, prepared, read_curve, train_curve, train_here


@pytest.fixture(scope="session")
def hard(tiny, tmp_path_factory):
    """A run with dropout, accumulation and an epoch edge, that saves every third step."""
    corpus = tmp_path_factory.mktemp("small") / "small.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} says that {n} squared is {n * n}, and goes on for a while." for n in range(120)))
    return [
        *tiny,
        f"data.path={corpus}",
        "data.tokenizer.vocab_size=300",
        "model=gpt2_tiny",
        "model.dropout=0.1",
        "train.steps=60",
        "train.micro_batch=4",
        "train.log_every=4",
        "checkpoint.every=3",
    ]


def kill_until_done(arguments, run_dir, ranks, kills, rng):
    """Starts the same command again and again, killing it ``kills`` times; then lets it finish.

    Every other kill comes at a random instant of the whole, which may be before the first step; the others, the first of them, soon after a checkpoint.
    """
    done = 0
    slowest = 3.0
    while done < kills:
        before = newest(run_dir)
        job = Ranks(train_here, ranks, last_wins([*arguments, f"run.dir={run_dir}"]))
        in_training = done % 2 == 0
        while in_training and newest(run_dir) == before and job.running:
            time.sleep(0.005)
        began = time.monotonic()
        wait = rng.uniform(0.1, slowest) * (0.2 if in_training else 1.0)
        while time.monotonic() - began < wait and job.running:
            time.sleep(0.005)
        if not job.running:  # it finished before it could be killed: aim earlier
            slowest *= 0.8
            job.kill()
            assert json.loads((run_dir / "exit.json").read_text())["code"] == 0
            shutil.rmtree(newest(run_dir))  # so that there is training left to interrupt
            continue
        job.send(signal.SIGKILL, rank=rng.randrange(ranks))  # one rank dies; the others must not survive it
        time.sleep(0.05)
        job.kill()
        done += 1
    assert newest(run_dir), "there must be something to resume from"
    return train_curve(arguments, run_dir, ranks)


def newest(run_dir):
    """The newest checkpoint; None if there is none yet."""
    return next(iter(verify.newest(run_dir / "checkpoints")), None)


BACKGROUND = "checkpoint.background=true"
OTHERS = ("zero3", "tensor", "pipeline")


@pytest.mark.parametrize(
    ("ranks", "workers", "strategy", "more", "kills"),
    [
        (2, 0, "fsdp", [BACKGROUND], 2),
        pytest.param(1, 0, "single", [], 10, marks=pytest.mark.slow),
        pytest.param(2, 2, "fsdp", [], 20, marks=pytest.mark.slow),
        *(pytest.param(2, 0, name, more, 10, marks=pytest.mark.slow) for more in ([], [BACKGROUND]) for name in OTHERS),
        pytest.param(1, 2, "single", [BACKGROUND], 10, marks=pytest.mark.slow),
        pytest.param(2, 2, "fsdp", [BACKGROUND], 10, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_instants(hard, tmp_path, ranks, workers, strategy, more, kills):
    arguments = last_wins([*hard, f"data.workers={workers}", *layout(strategy), *more])
    whole = train_curve(arguments, tmp_path / "whole", ranks)
    assert 2 * rows_of(hard) < 60 * 16, "the run must cross an epoch's edge"
    curve = kill_until_done(arguments, tmp_path / "run", ranks, kills, random.Random(workers))
    assert [line["step"] for line in curve] == list(range(1, 61))
    assert [(line["loss"].hex(), line["samples"]) for line in curve] == [(line["loss"].hex(), line["samples"]) for line in whole]


def rows_of(arguments):
    return len(prepared(arguments)[1].samples("train"))


@pytest.mark.parametrize(
    ("name", "strategy", "ranks", "kills"),
    [
        ("bert", "fsdp", 2, 2),
        pytest.param("t5", "ddp", 2, 10, marks=pytest.mark.slow),
        pytest.param("bert", "fsdp", 2, 10, marks=pytest.mark.slow),
        pytest.param("t5", "zero2", 2, 10, marks=pytest.mark.slow),
        pytest.param("roberta", "ddp", 2, 10, marks=pytest.mark.slow),
        pytest.param("t5 spans", "fsdp", 2, 10, marks=pytest.mark.slow),
        pytest.param("bart spans", "single", 1, 10, marks=pytest.mark.slow),
        pytest.param("bart", "fsdp", 2, 10, marks=pytest.mark.slow),
        pytest.param("bert classes", "fsdp", 2, 10, marks=pytest.mark.slow),
        pytest.param("roberta number", "hsdp", 4, 10, marks=pytest.mark.slow),
    ],
)
def test_masks_dropout_and_workers_survive_kills(task, tmp_path, name, strategy, ranks, kills):
    """The mask of a sample, its dropout and the place of the stream are functions of the step: nothing about them is lost."""
    more = ["model.dropout=0.1", "data.workers=2", "train.micro_batch=2", "train.steps=40", "train.log_every=4", "checkpoint.every=3"]
    arguments = [*task(name), *more, f"strategy={strategy}", *(["data.group_by_length=true"] if name == "bart" else [])]
    whole = train_curve(arguments, tmp_path / "whole", ranks)
    curve = kill_until_done(arguments, tmp_path / "run", ranks, kills, random.Random(7))
    assert [line["step"] for line in curve] == list(range(1, 41))
    assert [(line["loss"].hex(), line["samples"]) for line in curve] == [(line["loss"].hex(), line["samples"]) for line in whole]


@pytest.mark.soak
@pytest.mark.parametrize("more", [[], [BACKGROUND]], ids=["waiting", "background"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("seed", range(10))
def test_two_hundred_kills(hard, tmp_path, strategy, seed, more):
    arguments = [*hard, f"data.workers={seed % 2 * 2}", f"strategy={strategy}", *more]
    whole = train_curve(arguments, tmp_path / "whole", 2)
    curve = kill_until_done(arguments, tmp_path / "run", 2, 10, random.Random(1000 + seed))
    assert [line["loss"].hex() for line in curve] == [line["loss"].hex() for line in whole]


def die_in(module, function, call, arguments):
    """Trains until a function is called for the ``call``-th time, from whatever thread, then dies as by kill -9."""
    import importlib

    place = importlib.import_module(f"trainer.checkpoint.{module}")
    original = getattr(place, function)
    calls = []

    def fatal(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(place, function, fatal)
    train_here(arguments)


PLACES = [("commit", "begin", 3), ("checkpointer", "write_shards", 3), ("writing", "_make_durable", 3), ("commit", "describe_files", 3)]
PLACES += [("manifest", "write", 3), ("commit", "commit", 3), ("commit", "prune", 3)]
STAGING = ("staging", "_take", 280)
"""In the middle of the third copy, of 112 tensors."""


@pytest.mark.parametrize(
    ("module", "function", "call", "more"),
    [
        *(pytest.param(*place, [], marks=() if place[:2] == ("commit", "commit") else pytest.mark.slow) for place in PLACES),
        *(pytest.param(*place, [BACKGROUND], marks=() if place == STAGING else pytest.mark.slow) for place in (STAGING, *PLACES)),
    ],
)
def test_killed_in_the_middle_of_a_save(hard, tmp_path, module, function, call, more):
    arguments = [*hard, "train.steps=15", *more]
    whole = train_curve(arguments, tmp_path / "whole")
    job = Ranks(die_in, 1, module, function, call, last_wins([*arguments, f"run.dir={tmp_path / 'run'}"]))
    with pytest.raises(AssertionError, match="-9"):
        job.results()
    job.kill()
    left = verify.newest(tmp_path / "run" / "checkpoints")
    assert left and all(verify.problems(folder) == [] for folder in left)
    assert len(read_curve(tmp_path / "run")) >= 3
    curve = train_curve(arguments, tmp_path / "run")
    assert [line["loss"].hex() for line in curve] == [line["loss"].hex() for line in whole]
