"""Loading that goes on beside training: the next step's batches are made, and pinned, while this one's are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


def one_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yields what ``jobs`` give, in their order; each is done in one thread while the result of the one before is used.

    ``jobs`` itself is iterated here, by whoever asks for the next result: what ranks have to do at the same time belongs there. What a job
    or ``jobs`` raises is raised where its result would have come. The thread works on the CUDA device of whoever asks first: one of its own
    would be the first GPU, in which memory would then be taken by every rank.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_on_the_same_device()) as thread:
        waiting: deque[Future[T]] = deque()
        upcoming, failure = iter(jobs), None
        while failure is None:
            try:
                waiting.append(thread.submit(next(upcoming)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
        if failure is not None:
            raise failure


def _on_the_same_device() -> Callable[[], None]:
    if not torch.cuda.is_initialized():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())
