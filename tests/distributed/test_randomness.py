"""Whose random numbers: training leaves the process's generators as they were, and dropout draws from (seed, step, rank, micro-batch)."""

import hashlib
import os
import random

import numpy as np
import pytest
import torch

from trainer.testing import last_wins, run_ranks, train_here


def states() -> list[str]:
    """A fingerprint of each global generator."""
    found = (torch.random.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode(), repr(np.random.get_state()).encode())
    return [hashlib.sha256(state).hexdigest() for state in found]


def train_between(arguments: list[str]) -> tuple[list[str], list[str]]:
    torch.manual_seed(11), random.seed(12), np.random.seed(13)
    before = states()
    assert train_here(arguments) == 0
    return before, states()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_alone(tiny, tmp_path, workers):
    more = ["model=gpt2_tiny", "model.dropout=0.1", f"data.workers={workers}", "train.steps=6", f"run.dir={tmp_path / 'run'}"]
    for before, after in run_ranks(train_between, 2, last_wins([*tiny, *more])):
        assert after == before


def masks(arguments: list[str], noise: int) -> list[str]:
    """What the first dropout layer dropped, forward by forward, hashed; ``noise`` seeds what must not matter."""
    seen = []

    def look(module, inputs, output):
        dropped = output.eq(0) & inputs[0].ne(0)
        if module.training:
            seen.append(hashlib.sha256(dropped.numpy().tobytes()).hexdigest())

    from trainer.engine.native import NativeEngine

    original = NativeEngine.__init__

    def watched(self, job, parts):
        original(self, job, parts)
        next(module for module in parts.model.modules() if isinstance(module, torch.nn.Dropout)).register_forward_hook(look)

    NativeEngine.__init__ = watched
    torch.manual_seed(noise + int(os.environ["RANK"]))
    assert train_here(arguments) == 0
    return seen[1:]  # the first forward is DDP's rehearsal, which counts for nothing


def test_dropout_is_repeatable_and_differs_between_steps_ranks_and_micro_batches(tiny, tmp_path):
    more = ["strategy=ddp", "model=gpt2_tiny", "model.dropout=0.2", "train.micro_batch=4", "train.steps=6"]

    def run(name, *others, noise=0):
        return run_ranks(masks, 2, last_wins([*tiny, *more, *others, f"run.dir={tmp_path / name}"]), noise)

    whole = run("whole")
    assert [len(rank) for rank in whole] == [12, 12]
    assert len({mask for rank in whole for mask in rank}) == 24, "each rank, step and micro-batch has a mask of its own"
    assert run("again", noise=5) == whole
    first, second = run("parts", "train.stop_after=4"), run("parts", noise=9)
    assert [before + after for before, after in zip(first, second, strict=True)] == whole
    assert not {mask for rank in run("other", "train.seed=1") for mask in rank} & {mask for rank in whole for mask in rank}
