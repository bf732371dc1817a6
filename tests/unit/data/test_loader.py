"""Dealing, and the same batches from here and from workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer
from trainer.data.loader import StepLoader, deal, held_out_batches
from trainer.data.order import SampleOrder
from trainer.data.rows import PackedRows
from trainer.objective.causal_lm import CausalLM
from trainer.types import Batch


def packed_rows(num_tokens: int = 5000) -> PackedRows:
    starts = np.unique(np.random.default_rng(0).integers(0, num_tokens, 100))
    starts[0] = 0
    return PackedRows(np.arange(num_tokens, dtype=np.uint16), starts, 16, 0)


def loader(workers: int = 0, **changes) -> StepLoader:
    rows = packed_rows()
    settings = {"global_batch": 10, "micro_batch": 4, "data_rank": 1, "data_size": 3} | changes
    return StepLoader(rows, SampleOrder(len(rows), 7), CausalLM().collate, workers=workers, **settings)


@pytest.mark.parametrize("global_batch", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("data_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 64])
def test_a_batch_is_dealt_evenly_and_completely(global_batch, data_size, micro_batch):
    ids = np.arange(100, 100 + global_batch)
    dealt = [deal(ids, rank, data_size, micro_batch) for rank in range(data_size)]
    shares = [np.concatenate(micro_batches) for micro_batches in dealt]
    real = [share[share >= 0] for share in shares]
    assert np.concatenate(real).tolist() == ids.tolist()
    assert max(map(len, real)) - min(map(len, real)) <= 1
    largest = -(-global_batch // data_size)
    count = -(-largest // micro_batch)
    assert {len(micro_batches) for micro_batches in dealt} == {count}
    assert {array.shape for micro_batches in dealt for array in micro_batches} == {(-(-largest // count),)}
    assert -(-largest // count) <= micro_batch


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert type(a) is type(b) is Batch
        assert a.counts == b.counts
        assert a.inputs.keys() == b.inputs.keys()
        for x, y in zip((a.labels, *a.inputs.values()), (b.labels, *b.inputs.values()), strict=True):
            assert x.dtype == y.dtype == torch.int64
            assert torch.equal(x, y)


def test_workers_give_what_the_trainer_would_load_itself():
    here, there = loader(), loader(workers=2)
    expected = list(here.steps(28, 70))
    found = list(there.steps(28, 70))
    assert [step for step, _, _ in found] == list(range(28, 71))
    for (step, ids, batches), (_, other_ids, other_batches) in zip(expected, found, strict=True):
        assert np.array_equal(ids, other_ids)
        assert np.array_equal(ids, here.order.batch(step, 10))
        assert_same(batches, other_batches)
        assert_same(batches, here.load(step)[2])


def test_closing_ends_the_workers():
    steps = loader(workers=2).steps(1, 10**6)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    assert not multiprocessing.active_children()


def test_loading_draws_nothing_from_the_global_generators():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1]
    for workers in (0, 2):
        list(loader(workers).steps(1, 3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_seeking_is_immediate():
    seeking = loader()
    start = time.perf_counter()
    step, ids, _ = next(seeking.steps(1_000_000, 2_000_000))
    assert time.perf_counter() - start < 0.1
    assert step == 1_000_000
    assert np.array_equal(ids, seeking.order.batch(1_000_000, 10))


def test_held_out_rows_come_once_in_order():
    rows = packed_rows(16 * 10 + 1)
    for size in (1, 2, 3):
        dealt = [list(held_out_batches(rows, CausalLM().collate, 7, 2, rank, size)) for rank in range(size)]
        assert len({len(batches) for batches in dealt}) == 1
        assert (
            sum(batch.counts["targets"] for batches in dealt for batch in batches)
            == CausalLM().collate(rows.take(np.arange(7))).counts["targets"]
        )
    assert list(held_out_batches(packed_rows(1), CausalLM().collate, 7, 2)) == []
    assert sum(len(batch.labels) for batch in held_out_batches(rows, CausalLM().collate, 1000, 5)) == 10


SCRIPT = """
import multiprocessing, os, sys, time
from tests.unit.data.test_loader import loader
steps = loader(workers=2).steps(1, 10**6)
next(steps)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def start(rest: str) -> tuple[subprocess.Popen, list[int]]:
    """A process with two loader workers that goes on with ``rest``; and the workers' ids."""
    root = str(Path(trainer.__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", SCRIPT + rest], cwd=root, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in child.stdout.readline().split()]
    assert len(workers) == 2
    return child, workers


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < give_up, f"still there after {seconds} s: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent():
    child, workers = start("time.sleep(60)")
    child.kill()
    wait_until_gone(workers, 1.0)
    child.wait()


def test_workers_leave_requests_to_stop_to_their_parent():
    child, workers = start("sys.stdin.close(); time.sleep(1); steps = [next(steps)[0] for _ in range(50)]; print(steps[-1], flush=True)")
    for pid in workers:
        for request in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, request)
    out, _ = child.communicate(timeout=30)
    assert out.strip() == "51"
    assert child.returncode == 0


@pytest.mark.parametrize("rest", ["raise SystemExit(4)", "1 / 0"])
def test_the_program_ends_although_workers_ignore_requests(rest):
    child, workers = start(rest)
    child.wait(timeout=15)
    wait_until_gone(workers, 1.0)
