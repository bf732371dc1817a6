"""From sample ids to micro-batches, in this process or in others."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trainer.data.ahead import one_ahead
from trainer.data.order import step_draws
from trainer.distributed.lifetime import die_with_parent
from trainer.distributed.stop import SIGNALS
from trainer.types import Batch, Draws, Samples

if TYPE_CHECKING:
    from trainer.data.samples import AnySet
    from trainer.protocols import Order

Collate = Callable[[Samples], Batch]
_SAMPLES_AT_ONCE = 512
"""For so many, finding the order costs as much as for one; more would be felt as a pause."""

_SAMPLES_TAKEN_AT_ONCE = 32
"""Small steps are made so many samples ahead: what it costs to cut samples is hardly more for a few of them than for one, and between two steps of the model it would find the processor's caches cold."""

Step = tuple[int, np.ndarray, list[Batch]]
_OPTIONAL = ("places", "ids")
"""The fields of a batch that may be None."""


def deal(ids: np.ndarray, data_rank: int, data_size: int, micro_batch: int) -> list[np.ndarray]:
    """One data rank's share of a global batch, as micro-batches that are equal in number and shape on all ranks.

    Shares are contiguous and differ by one sample at most; -1 fills up short ones.

    Args:
        ids: int64 (B,), the global batch.
        data_rank, data_size: this rank's place among those that share the batch.
        micro_batch: most samples per micro-batch.

    Returns:
        M arrays (S,) with M = ceil(ceil(B / data_size) / micro_batch) and S = ceil(ceil(B / data_size) / M).
    """
    largest = -(-ids.size // data_size)
    count = -(-largest // micro_batch)
    size = -(-largest // count)
    share = ids[ids.size * data_rank // data_size : ids.size * (data_rank + 1) // data_size]
    filled = np.full((count, size), -1, np.int64)
    filled.reshape(-1)[: share.size] = share
    return list(filled)


@dataclass(frozen=True)
class StepLoader:
    """Makes the micro-batches of any step; which samples a step holds depends on ``order`` alone.

    All micro-batches of a step have one shape, on all ranks: the whole global batch decides how wide padded rows are, so that neither
    the number of ranks nor ``micro_batch`` changes what a sample looks like.

    Attributes:
        samples, order, collate: where samples lie, when they are due, and what becomes of them.
        global_batch: samples per step over all ranks.
        micro_batch: most samples per micro-batch.
        data_rank, data_size: this rank's place among those that share the batch.
        workers: processes that load ahead; 0: this one loads, when asked.
        pin_memory: give tensors in page-locked memory, for copies to a GPU that do not wait.
        ahead: without workers, make the next step's micro-batches in a thread while this step's are used.
    """

    samples: AnySet
    order: Order
    collate: Collate
    global_batch: int
    micro_batch: int
    data_rank: int = 0
    data_size: int = 1
    workers: int = 0
    pin_memory: bool = False
    ahead: bool = False

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yields (step, sample ids of the global batch, this rank's micro-batches) for ``first`` up to and including ``last``.

        Workers live until the iterator is exhausted, closed or collected.
        """
        source = self._by_workers(first, last) if self.workers else self._here(first, last)
        if self.pin_memory:
            source = ((step, ids, [pinned(batch) for batch in batches]) for step, ids, batches in source)
        if self.workers or not self.ahead:
            return source
        return one_ahead(partial(next, source) for _ in range(first, last + 1))

    def load(self, step: int) -> Step:
        """The same for one step, here and now."""
        return next(self._make(step, 1))

    def _make(self, first: int, num_steps: int) -> Iterator[Step]:
        draws = step_draws(self.order, first, num_steps, self.global_batch)
        at_once = max(1, _SAMPLES_TAKEN_AT_ONCE // self.global_batch)
        for begin in range(0, num_steps, at_once):
            some = Draws(draws.ids[begin : begin + at_once], draws.epochs[begin : begin + at_once])
            ready = [step for alike, widths in self._alike(some) for step in self._taken(alike, widths)]
            yield from ((first + begin + number, ids, batches) for number, (ids, batches) in enumerate(ready))

    def _alike(self, draws: Draws) -> Iterator[tuple[Draws, dict[str, int]]]:
        """Yields the steps in a row whose samples are to have the same widths, and these."""
        end = 0
        for widths, alike in groupby(map(self.samples.widths, draws.ids)):
            begin, end = end, end + len(list(alike))
            yield Draws(draws.ids[begin:end], draws.epochs[begin:end]), widths

    def _taken(self, draws: Draws, widths: dict[str, int]) -> Iterator[tuple[np.ndarray, list[Batch]]]:
        """Yields the sample ids and this rank's micro-batches of each of some steps (n, B)."""
        places = self._places
        flat, size = places.reshape(-1), places.shape[1]
        ids, epochs = (np.where(flat < 0, fill, values[:, flat]).reshape(-1) for values, fill in ((draws.ids, -1), (draws.epochs, 0)))
        samples = self.samples.take(ids, epochs, widths)
        for number, of_step in enumerate(draws.ids):
            begins = range(number * flat.size, (number + 1) * flat.size, size)
            yield of_step, [self.collate(samples[begin : begin + size]) for begin in begins]

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 (M, S): the places of this rank's samples in a global batch, by micro-batch; -1 fills up."""
        return np.stack(deal(np.arange(self.global_batch), self.data_rank, self.data_size, self.micro_batch))

    def _here(self, first: int, last: int) -> Iterator[Step]:
        at_once = max(1, _SAMPLES_AT_ONCE // self.global_batch)
        for start in range(first, last + 1, at_once):
            yield from self._make(start, min(at_once, last + 1 - start))

    def _by_workers(self, first: int, last: int) -> Iterator[Step]:
        loader = DataLoader(
            _Packed(self),
            batch_size=None,
            sampler=range(first, last + 1),
            num_workers=self.workers,
            # Workers share the memory map, and the trainer, not a fork server, is the parent with which they die.
            multiprocessing_context="fork",
            collate_fn=lambda step: step,  # the default would make tensors of them
            worker_init_fn=_Obedience(os.getpid()),
            # Without one of its own, each iterator would draw a seed from the global generator and change the run.
            generator=torch.Generator(),
        )
        # A request that comes between a worker's birth and its first line would end it: it is born deaf.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            iterator: Any = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        # They ignore SIGTERM, with which multiprocessing would end them at exit and then wait for ever.
        unregister = atexit.unregister  # while Python shuts down, the module may be gone before this generator is
        atexit.register(iterator._shutdown_workers)
        try:
            for step, ids, packed in iterator:
                yield step, ids, [_unpack(batch) for batch in packed]
        finally:
            iterator._shutdown_workers()
            unregister(iterator._shutdown_workers)


def spread(number: int, size: int) -> np.ndarray:
    """The places of ``number`` samples taken evenly from ``size`` (all, if there are fewer), ascending."""
    taken = min(number, size)
    return np.arange(taken, dtype=np.int64) * size // max(taken, 1)


def held_out_batches(
    samples: AnySet, collate: Collate, num_samples: int, micro_batch: int, data_rank: int = 0, data_size: int = 1
) -> Iterator[Batch]:
    """This rank's micro-batches of ``num_samples`` samples (or all, if there are fewer), one for each block that is dealt.

    They are spread evenly over the split, because its beginning may be one file or one class. Every rank gets the same number of them, equal in number of samples and, block by block, in shape; none if there are no samples.
    """
    ids = spread(num_samples, len(samples))
    if not ids.size:
        return
    size = deal(ids, 0, data_size, micro_batch)[0].size
    for first in range(0, ids.size, size * data_size):
        block = np.full(size * data_size, -1)
        real = ids[first : first + block.size]
        block[: real.size] = real
        share = block[data_rank * size : (data_rank + 1) * size]
        yield collate(samples.take(share, None, samples.widths(real)))


class _Packed(Dataset):
    """Steps as they travel from a worker: arrays go through a pipe, where each tensor would cost a file descriptor and shared memory."""

    def __init__(self, loader: StepLoader):
        self._loader = loader

    def __getitem__(self, step: int) -> tuple[int, np.ndarray, list[dict[str, Any]]]:
        step, ids, batches = self._loader.load(step)
        return step, ids, [_pack(batch) for batch in batches]


def _pack(batch: Batch) -> dict[str, Any]:
    return _mapped(batch, lambda tensor: tensor.numpy()) | {"counts": batch.counts}


def _unpack(packed: dict[str, Any]) -> Batch:
    optional = {name: None if packed[name] is None else torch.from_numpy(packed[name]) for name in _OPTIONAL}
    inputs = {name: torch.from_numpy(array) for name, array in packed["inputs"].items()}
    return Batch(inputs=inputs, labels=torch.from_numpy(packed["labels"]), counts=packed["counts"], **optional)


def pinned(batch: Batch) -> Batch:
    """The same in page-locked memory, for copies to a GPU that do not wait."""
    return replace(batch, **_mapped(batch, torch.Tensor.pin_memory))


def _mapped(batch: Batch, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """All tensors of a batch, changed, by the name of their field."""
    optional = {name: None if (tensor := getattr(batch, name)) is None else change(tensor) for name in _OPTIONAL}
    inputs = {name: change(tensor) for name, tensor in batch.inputs.items()}
    return {"inputs": inputs, "labels": change(batch.labels), **optional}


@dataclass(frozen=True)
class _Obedience:
    """What each worker does first: it leaves requests to stop to its parent, which still needs batches, and dies with it."""

    parent: int

    def __call__(self, worker: int) -> None:
        for request in SIGNALS:
            signal.signal(request, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        die_with_parent(self.parent)
