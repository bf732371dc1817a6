"""Dealing, and the same batches from here and from workers."""

import functools
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
from trainer.data.grouping import LengthGrouped
from trainer.data.loader import StepLoader, deal, held_out_batches
from trainer.data.mixing import MixOrder
from trainer.data.order import SampleOrder, step_draws
from trainer.data.rows import PackedRows, PaddedRows
from trainer.data.samples import MixedSet, SampleSet
from trainer.objective.causal_lm import CausalLM
from trainer.types import Batch, Context, Samples, Vocabulary, Window

CONTEXT = Context(
    Vocabulary(size=5000, bos=None, eos=None, pad=None, sha256=""), seed=0, decoder_start=None, word_starts=np.ones(5000, bool)
)
COLLATE = functools.partial(CausalLM().collate, context=CONTEXT)


def packed(num_tokens: int = 5000) -> SampleSet:
    starts = np.unique(np.random.default_rng(0).integers(0, num_tokens, 100))
    starts[0] = 0
    return SampleSet({"text": PackedRows(np.arange(num_tokens, dtype=np.uint16), starts, Window(16, 17), 0)})


def padded(num: int = 73) -> SampleSet:
    """Documents of 1 to 60 tokens; the tokens of document i are all i."""
    lengths = np.random.default_rng(1).integers(1, 61, num)
    rows = PaddedRows(np.repeat(np.arange(num), lengths), np.cumsum(lengths) - lengths, Window(64, 64), 0, None)
    return SampleSet({"text": rows}, np.arange(num) / 2)


def to_batch(samples: Samples) -> Batch:
    """All fields that a batch may have, filled with what came in."""
    rows = samples.rows["text"]
    return Batch(
        inputs={"input_ids": torch.from_numpy(rows.tokens), "epochs": torch.from_numpy(samples.epochs)},
        labels=torch.from_numpy(samples.labels),
        counts={"targets": int((samples.ids >= 0).sum())},
        places=torch.from_numpy(np.flatnonzero(rows.real)),
        ids=torch.from_numpy(samples.ids),
    )


def loader(workers: int = 0, samples: SampleSet | None = None, collate=COLLATE, **changes) -> StepLoader:
    samples = packed() if samples is None else samples
    settings = {"global_batch": 10, "micro_batch": 4, "data_rank": 1, "data_size": 3} | changes
    return StepLoader(samples, SampleOrder(len(samples), 7), collate, workers=workers, **settings)


def drawn(of: StepLoader, step: int) -> np.ndarray:
    return step_draws(of.order, step, 1, of.global_batch).ids[0]


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


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    optional = {name: tensor for name in ("places", "ids") if (tensor := getattr(batch, name)) is not None}
    return {"labels": batch.labels, **optional, **batch.inputs}


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert type(a) is type(b) is Batch
        assert a.counts == b.counts
        assert tensors(a).keys() == tensors(b).keys()
        for name, tensor in tensors(a).items():
            assert tensor.dtype == tensors(b)[name].dtype
            assert torch.equal(tensor, tensors(b)[name])


@pytest.mark.parametrize("elsewhere", [{"workers": 2}, {"workers": 2, "ahead": True}, {"ahead": True}], ids=str)
@pytest.mark.parametrize(("samples", "collate"), [(packed(), COLLATE), (padded(), to_batch)])
def test_workers_and_the_thread_give_what_the_trainer_would_load_itself(samples, collate, elsewhere):
    here, there = loader(0, samples, collate), loader(samples=samples, collate=collate, **elsewhere)
    expected = list(here.steps(28, 70))
    found = list(there.steps(28, 70))
    assert [step for step, _, _ in found] == list(range(28, 71))
    for (step, ids, batches), (_, other_ids, other_batches) in zip(expected, found, strict=True):
        assert np.array_equal(ids, other_ids)
        assert np.array_equal(ids, drawn(here, step))
        assert_same(batches, other_batches)
        assert_same(batches, here.load(step)[2])


def test_the_width_is_that_of_the_whole_step_whatever_the_layout():
    samples = padded()
    widths = set()
    for step in range(1, 40):
        shapes, rows = set(), {}
        for size, micro in ((1, 10), (1, 3), (2, 2), (3, 1), (4, 8)):
            for rank in range(size):
                settings = {"data_rank": rank, "data_size": size, "micro_batch": micro}
                _, ids, batches = loader(0, samples, to_batch, **settings).load(step)
                for batch in batches:
                    shapes.add(batch.inputs["input_ids"].shape[1])
                    for id, row in zip(batch.ids.tolist(), batch.inputs["input_ids"].tolist(), strict=True):
                        assert id < 0 or rows.setdefault(id, row) == row, "a sample looks the same in every layout"
        assert len(shapes) == 1
        assert set(rows) == set(ids.tolist())
        widths |= shapes
    assert len(widths) > 2, "short steps are narrow"


@pytest.mark.parametrize("data_size", [1, 2, 3])
def test_every_record_comes_once_an_epoch_with_its_epoch(data_size):
    samples = padded(73)
    seen = []
    for rank in range(data_size):
        for _, _, batches in loader(0, samples, to_batch, data_rank=rank, data_size=data_size).steps(1, 22):
            for batch in batches:
                real = batch.ids >= 0
                seen += zip(batch.inputs["epochs"][real].tolist(), batch.ids[real].tolist(), strict=True)
                assert (batch.labels[real] == batch.ids[real] / 2).all()
                assert batch.inputs["epochs"][~real].tolist() == [0] * int((~real).sum())
    assert len(seen) == 220
    assert sorted(seen)[:219] == [(epoch, id) for epoch in range(3) for id in range(73)]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_mix_gives_every_part_its_share_and_every_record_once_an_epoch(grouped):
    parts = {"small": padded(10), "large": padded(73)}
    samples = MixedSet(parts)
    order = MixOrder([SampleOrder(len(part), 7) for part in parts.values()], [0.25, 0.75], [0.25, 0.75], 240)
    if grouped:
        order = LengthGrouped(order, samples.lengths, 12, 7, window=5)
    seen = []
    for rank in range(2):
        for _, _, batches in StepLoader(samples, order, to_batch, 12, 4, rank, 2).steps(1, 20):
            for batch in batches:
                seen += zip(batch.inputs["epochs"].tolist(), batch.ids.tolist(), strict=True)
                own = torch.where(batch.ids < 10, batch.ids, batch.ids - 10)
                assert (batch.labels == own / 2).all()
                assert (batch.inputs["input_ids"][:, 0] == own).all()
    small, large = ([draw for draw in sorted(seen) if (draw[1] < 10) is is_small] for is_small in (True, False))
    assert small == [(epoch, id) for epoch in range(6) for id in range(10)]
    assert len(large) == 180
    assert large[:146] == [(epoch, 10 + id) for epoch in range(2) for id in range(73)]


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
    assert np.array_equal(ids, drawn(seeking, 1_000_000))


def test_held_out_samples_come_once():
    samples = packed(16 * 10 + 1)
    for size in (1, 2, 3):
        dealt = [list(held_out_batches(samples, COLLATE, 7, 2, rank, size)) for rank in range(size)]
        assert len({len(batches) for batches in dealt}) == 1
        taken = samples.take(np.array([0, 1, 2, 4, 5, 7, 8]))
        assert sum(batch.counts["targets"] for batches in dealt for batch in batches) == COLLATE(taken).counts["targets"]
    assert list(held_out_batches(packed(1), COLLATE, 7, 2)) == []
    assert sum(len(batch.labels) for batch in held_out_batches(samples, COLLATE, 1000, 5)) == 10


@pytest.mark.parametrize(("number", "micro"), [(20, 4), (21, 4), (3, 64), (73, 5), (1, 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_held_out_blocks_have_one_shape_on_all_ranks(number, micro, size):
    samples = padded()
    dealt = [list(held_out_batches(samples, to_batch, number, micro, rank, size)) for rank in range(size)]
    ids = [id for block in zip(*dealt, strict=True) for batch in block for id in batch.ids.tolist()]
    assert [id for id in ids if id >= 0] == [place * len(samples) // number for place in range(number)], (
        "from all over the split, in order, once"
    )
    assert len({batch.labels.shape for batches in dealt for batch in batches}) == 1
    for block in zip(*dealt, strict=True):
        assert len({batch.inputs["input_ids"].shape for batch in block}) == 1
        longest = max(samples.lengths[id] for batch in block for id in batch.ids.tolist() if id >= 0)
        assert block[0].inputs["input_ids"].shape[1] == -(-longest // 8) * 8
    assert max(batch.labels.size(0) for batches in dealt for batch in batches) <= micro


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
