"""How bytes get into a file and are hashed: at once; or, where training leaves no core for it, in pieces with rests, until somebody waits."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

import torch

NICE = 19
"""How far threads stand back in the scheduler."""
SHARE = 0.05
"""Of a core: what a step then loses is less than one notices, and a gigabyte is there within a minute."""
_MOST_UNHASHED = 256 << 20
"""Bytes by which writing may be ahead of hashing, which is slower than a good disk's cache: copies of what lies on a GPU wait in the host's memory."""
_PIECE = 4 << 20
"""Bytes between two rests: some milliseconds of work."""


class Writer(Protocol):
    """Writes files one after another, in a thread of its own or not."""

    def begin(self) -> None:
        """From now on nobody waits for the work."""
        ...

    def hurry(self) -> None:
        """Somebody waits for it."""
        ...

    def write(self, stream: BinaryIO, contents: Iterable[memoryview]) -> str:
        """Makes ``contents`` one durable file.

        Returns:
            Its SHA-256.

        Raises:
            OSError: the disk is full ...
        """
        ...


class AtOnce:
    """As fast as it goes."""

    def begin(self) -> None:
        """Nothing: it knows no rest."""

    def hurry(self) -> None:
        """Nothing."""

    def write(self, stream: BinaryIO, contents: Iterable[memoryview]) -> str:
        """With a thread that hashes while this one writes, neither with Python's lock; without a core for both, it does while the disk is waited for."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor(1, initializer=stand_back) as beside:
            unhashed: deque[Future[int]] = deque()
            ahead = 0
            for content in contents:
                unhashed.append(beside.submit(_hash, digest, content))
                ahead += content.nbytes
                stream.write(content)
                while ahead > _MOST_UNHASHED:
                    ahead -= unhashed.popleft().result()
            _make_durable(stream)
            for hashed in unhashed:
                hashed.result()
        return digest.hexdigest()


class InPieces:
    """With a rest after each piece.

    Args:
        share: of the time that it may work.
    """

    def __init__(self, share: float):
        self._rest_per_second = 1 / share - 1
        self._hurried = threading.Event()

    def begin(self) -> None:
        """From now on nobody waits for the work."""
        self._hurried.clear()

    def hurry(self) -> None:
        """Somebody waits: a rest ends, and no other begins."""
        self._hurried.set()

    def rest(self, worked: float) -> None:
        """Waits as long as it has to after ``worked`` seconds of CPU time."""
        self._hurried.wait(worked * self._rest_per_second)

    def write(self, stream: BinaryIO, contents: Iterable[memoryview]) -> str:
        """See ``Writer``."""
        digest = hashlib.sha256()
        for content in contents:
            for begin in range(0, content.nbytes, _PIECE):
                began = time.thread_time()
                piece = content[begin : begin + _PIECE]
                stream.write(piece)
                digest.update(piece)
                self.rest(time.thread_time() - began)
        _make_durable(stream)
        return digest.hexdigest()


def writer_beside(ranks: int, on_gpu: bool) -> Writer:
    """How a thread of each rank is to write while training goes on: in pieces where there is no core for it.

    Niceness does not do: a thread that is ready runs whenever training waits for a moment, for another rank or for memory, and then is in the
    way of what training does next.

    Args:
        ranks: on this machine.
        on_gpu: whether training is done there, and a rank needs one core; else it needs one for each of torch's threads.
    """
    needed = ranks * (1 if on_gpu else torch.get_num_threads())
    return InPieces(SHARE) if _cores() < needed + ranks else AtOnce()


def stand_back() -> None:
    """Lets every other thread go first on this thread's core; on Linux, elsewhere it would be the whole process."""
    if sys.platform == "linux":
        with suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)


def _hash(digest: Any, content: memoryview) -> int:
    digest.update(content)
    return content.nbytes


def _make_durable(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
