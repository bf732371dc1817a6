"""The batches of a set that is read while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np

from trainer.data.ahead import one_ahead
from trainer.data.blocks import Block, Blocks, State
from trainer.data.loader import Collate, Step, deal, pinned
from trainer.data.samples import AnySet, MixedSet, SampleSet
from trainer.types import Batch

Widths = dict[str, int]
"""Tokens per row, by field."""

_SAMPLES_AT_ONCE = 512
"""For so many, ranks tell each other how wide their rows are in one message."""


@dataclass(frozen=True)
class _Share:
    """This rank's samples of one step, and the state behind them."""

    samples: AnySet
    ids: np.ndarray
    epochs: np.ndarray
    state: State


class StreamLoader:
    """The batches of one data rank, in the order of its stream; a later block is read and tokenized while training goes on.

    The k-th sample of data rank r has the id k * data_size + r. All micro-batches of a step have one shape, on all ranks.

    Args:
        blocks: this rank's stream.
        collate: makes micro-batches of samples.
        global_batch, micro_batch, data_rank, data_size, pin_memory, ahead: see ``trainer.data.loader.StepLoader``.
        widest: gives for some steps and each field the greatest of all data ranks' row widths; collective. None: this rank's count.
        state: what ``state`` gave behind the step before; None: from the beginning.
    """

    def __init__(
        self,
        blocks: Blocks,
        collate: Collate,
        global_batch: int,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        widest: Callable[[list[Widths]], list[Widths]] | None = None,
        state: State | None = None,
        pin_memory: bool = False,
        ahead: bool = False,
    ):
        self._blocks, self._collate, self._widest, self._pin, self._ahead = blocks, collate, widest, pin_memory, ahead
        self._global_batch, self._data_rank, self._data_size = global_batch, data_rank, data_size
        self._places = deal(np.arange(global_batch), data_rank, data_size, micro_batch)
        self._first = global_batch * data_rank // data_size
        self._count = global_batch * (data_rank + 1) // data_size - self._first
        self._state: State = state or {"block": None, "taken": 0}
        self._block: Block | None = None
        self._taken = 0

    @property
    def state(self) -> State:
        """Where this rank is behind the last step that was given, as JSON: a block's state, and how many of its samples are taken."""
        return self._state

    @property
    def bad(self) -> State | None:
        """The records that this rank could not use in its epoch so far: their ``count`` and the ``first``; None: there are none."""
        bad = self._block.after["bad"] if self._block else None
        return bad if bad and bad["count"] else None

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yields (step, sample ids of the global batch, this rank's micro-batches) for ``first`` up to and including ``last``.

        Raises:
            Refused: see ``Blocks.behind``.
        """
        jobs = self._jobs(first, last)
        for state, step in one_ahead(jobs) if self._ahead else (job() for job in jobs):
            self._state = state
            yield step

    def _jobs(self, first: int, last: int) -> Iterator[Callable[[], tuple[State, Step]]]:
        """What makes each step, and the state behind it; the jobs share nothing, what ranks tell each other is told in between."""
        blocks = one_ahead(repeat(partial(next, self._blocks.behind(self._state["block"]))))
        self._block, self._taken = next(blocks), self._state["taken"]
        at_once = 1 if self._widest is None else max(1, _SAMPLES_AT_ONCE // self._global_batch)
        for start in range(first, last + 1, at_once):
            shares = [self._share(blocks) for _ in range(start, min(start + at_once, last + 1))]
            widths = [share.samples.widths(share.ids) for share in shares]
            widths = widths if self._widest is None else self._widest(widths)
            for step, share, width in zip(range(start, last + 1), shares, widths, strict=False):
                yield partial(self._made, step, share, width)

    def _made(self, step: int, share: _Share, widths: Widths) -> tuple[State, Step]:
        ids = self._ids(step)
        return share.state, (step, ids, [self._batch(ids, places, share, widths) for places in self._places])

    def _share(self, blocks: Iterator[Block]) -> _Share:
        """The next samples of this rank, which may come from several blocks."""
        assert self._block is not None
        sets: list[SampleSet] = []
        ids, epochs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        offset, wanted = 0, self._count
        while wanted:
            if self._taken == self._block.order.size:
                self._block, self._taken = next(blocks), 0
            part = self._block.order[self._taken : self._taken + wanted]
            ids.append(part + offset)
            epochs.append(np.full(part.size, self._block.epoch))
            sets.append(self._block.samples)
            offset += len(self._block.samples)
            self._taken += part.size
            wanted -= part.size
        sets = sets or [self._block.samples]  # a rank without samples copies any
        samples = MixedSet({str(number): part for number, part in enumerate(sets)}) if len(sets) > 1 else sets[0]
        return _Share(samples, np.concatenate(ids), np.concatenate(epochs), self._here(self._block))

    def _here(self, block: Block) -> State:
        if self._taken == block.order.size:
            return {"block": block.after, "taken": 0}
        return {"block": block.before, "taken": self._taken}

    def _ids(self, step: int) -> np.ndarray:
        """int64 (global batch,): each rank's samples carry its own running number."""
        places, ranks = np.arange(self._global_batch), np.arange(self._data_size + 1)
        begins = self._global_batch * ranks // self._data_size
        rank = np.searchsorted(begins, places, side="right") - 1
        counts = np.diff(begins)[rank]
        return ((step - 1) * counts + places - begins[rank]) * self._data_size + rank

    def _batch(self, ids: np.ndarray, places: np.ndarray, share: _Share, widths: Widths) -> Batch:
        """The micro-batch at these places of the global batch; -1 is a copy of any sample."""
        own = np.where(places >= 0, places - self._first, -1)
        taken = share.samples.take(np.append(share.ids, -1)[own], np.append(share.epochs, 0)[own], widths)
        batch = self._collate(replace(taken, ids=np.append(ids, -1)[places]))
        return pinned(batch) if self._pin else batch
