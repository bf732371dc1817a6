"""Loading that goes on beside training: the next step's batches are made, and pinned, while this one's are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yields what ``jobs`` give, in their order; each is done in one thread while the result of the one before is used.

    ``jobs`` itself is iterated here, by whoever asks for the next result: what ranks have to do at the same time belongs there. What a job
    raises is raised where its result would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            waiting.append(thread.submit(job))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
