"""Checkpoints that are written while training goes on: the same to the bit as if it had waited, on every engine, however slow the disk."""

import json
import time

import pytest

from tests.contracts.tasks import layout
from trainer.state.storage import read_tensors
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here

BACKGROUND = "checkpoint.background=true"
FROZEN = "model.embed_tokens.weight"
RANKS = {"single": 1, "hsdp": 4, "3d": 4, "tensor x fsdp": 4, "pipeline x fsdp": 4}
"""Where it is not 2."""
OFFLOADED = {
    "zero1": ["strategy.offload_optimizer=cpu"],
    "zero2": [],
    "zero3": ["strategy.offload_optimizer=cpu", "strategy.offload_parameters=cpu"],
}
ENGINES = ("single", "ddp", "fsdp", "hsdp", "tensor", "tensor x fsdp", "pipeline", "pipeline x fsdp", "3d", *OFFLOADED)


@pytest.fixture
def saving(tiny):
    return [*tiny, "train.steps=12", "train.log_every=2", "checkpoint.every=4", "checkpoint.keep=null"]


def write_slowly(arguments, seconds, frozen=False):
    """On a rank: trains with files that take their time, so that many updates are made before they are written."""
    from trainer import run
    from trainer.checkpoint import checkpointer

    write, build = checkpointer.write_shards, run.build_engine

    def slow(*arguments):
        time.sleep(seconds)
        return write(*arguments)

    def build_frozen(job, **options):
        job.skeleton.model.get_parameter(FROZEN).requires_grad_(False)
        return build(job, **options)

    checkpointer.write_shards = slow
    run.build_engine = build_frozen if frozen else build
    return train_here(arguments)


def saved(run_dir):
    """The bytes of every tensor file, by checkpoint and name."""
    return {path.relative_to(run_dir): path.read_bytes() for path in run_dir.rglob("shard-*")}


def in_both_modes(arguments, tmp_path, ranks, frozen=False):
    """Trains with and without waiting; returns both curves, after their checkpoints were found to be the same."""
    folders = {True: tmp_path / "background", False: tmp_path / "waiting"}
    for background, folder in folders.items():
        more = [f"run.dir={folder}", f"checkpoint.background={str(background).lower()}"]
        slow = run_ranks(write_slowly, ranks, last_wins([*arguments, *more]), 0.4 if background else 0.0, frozen)
        assert slow == [0] * ranks
    files = saved(folders[True])
    assert {path.parts[1] for path in files} == {"step-4", "step-8", "step-12"}
    assert files == saved(folders[False])
    return folders


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "fsdp" else pytest.mark.slow) for name in ENGINES])
def test_its_files_are_those_of_a_run_that_waits(saving, tmp_path, name):
    arguments = [*saving, *layout(name), *OFFLOADED.get(name, [])]
    folders = in_both_modes(arguments, tmp_path, RANKS.get(name, 2))
    for step in (4, 8, 12):
        states = [json.loads((folder / "checkpoints" / f"step-{step}" / "state.json").read_text()) for folder in folders.values()]
        for folder, state in zip(folders.values(), states, strict=True):
            counted = (folder / "metrics.jsonl").read_bytes()[: state.pop("metrics_bytes")].splitlines()
            assert json.loads(counted[-1])["step"] == step and counted[-1].endswith(b"}")
        assert states[0] == states[1]


@pytest.mark.slow
def test_frozen_weights_are_in_it_too(saving, tmp_path):
    folders = in_both_modes([*saving, "strategy=zero3"], tmp_path, 2, frozen=True)
    tensors = read_tensors(folders[True] / "checkpoints" / "step-12", "")
    assert f"model.{FROZEN}" in tensors and f"optim.{FROZEN}.exp_avg" not in tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fsdp", "fsdp"),
        ("zero2", "zero2"),
        ("pipeline", "tensor"),
        ("tensor", "zero3"),
    ],
)
def test_a_resumed_curve_is_that_of_a_run_that_was_never_stopped(saving, tmp_path, name, other):
    whole = train_curve([*saving, *layout(name)], tmp_path / "whole", 2)
    train_curve([*saving, *layout(name), BACKGROUND, "train.stop_after=7"], tmp_path / "run", 2)
    resumed = train_curve([*saving, *layout(other), BACKGROUND], tmp_path / "run", 2)
    assert_same_curve(resumed, whole, **({"loss": 0, "grad_norm": 0} if name == other else {}))
