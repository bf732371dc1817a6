"""How a session ends: which rank failed first and why, the exit record, and who tells the user."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch.distributed import DistError, Store
from torch.distributed.checkpoint.api import CheckpointException

from trainer.checkpoint.storage import explain_write
from trainer.distributed.launch import Launch
from trainer.distributed.lifetime import Member, ended
from trainer.distributed.log import LOGGER
from trainer.distributed.process_group import stop_process_group
from trainer.distributed.stop import Signals, StopRequest, before_training, end_process
from trainer.errors import DONE, FAILED, REFUSED, STOPPED, STORAGE, Failure, Refused, StorageFailed, TrainingFailed
from trainer.run_directory import RunDirectory

SECONDS_FOR_THE_CAUSE = 2.0
"""How long a rank whose fellow is gone waits for a rank that knows why."""
SECONDS_FOR_THE_MAIN_THREAD = 5.0
"""How long a launcher's signal waits for the main thread to notice by itself that a fellow rank is gone."""


class Ending:
    """What is known about the end of a session, and what a signal does until training listens to it.

    Args:
        launch: this rank.
        directory: ``run.dir`` on the rank that opened it; the others are told later.
        signals: of this process.

    Attributes:
        store: the group's, once there is one.
        members: all ranks, once they have met.
        code, sentence: to be filled in by a session that ends by itself.
        report: writes what is shown of the run, after ``exit.json``; never fails.
    """

    def __init__(self, launch: Launch, directory: RunDirectory | None, signals: Signals):
        self.launch = launch
        self.directory = directory
        self.signals = signals
        self.store: Store | None = None
        self.members: Sequence[Member] = ()
        self.code, self.sentence = DONE, ""
        self.report: Callable[[], None] = lambda: None
        self._settled = threading.Lock()

    def before_training(self, name: str) -> None:
        """A signal before anything is to be saved ends the process at once."""
        if self.launch.rank == 0 and self.directory is not None:
            self.directory.write_exit(STOPPED, before_training(name))
        end_process(STOPPED, before_training(name), self.launch.local_rank == 0)

    def without_saving(self, name: str) -> None:
        """A signal that insists."""
        sentence = f"Ended at once by a second {name}, without saving. {self._again} to go on from the newest checkpoint."
        if self.launch.rank == 0 and self.directory is not None:
            self.directory.write_exit(FAILED, sentence)
        end_process(FAILED, sentence, self.launch.rank == 0)

    def hand_signals_to(self, stop: StopRequest) -> None:
        """From now on a signal is a request to stop, unless a launcher sends it because a rank is gone."""

        def on_signal(name: str) -> None:
            self.if_a_rank_is_lost()
            stop.on_signal(name)

        self.signals.on_signal = on_signal

    def if_a_rank_is_lost(self) -> None:
        """Ends the process if a fellow rank is gone: a launcher's signal then means that, and no request to stop.

        The main thread may never notice by itself: on a GPU it waits for the dead rank until the timeout.
        """
        gone = ended(self.members)
        if not gone:
            return
        time.sleep(SECONDS_FOR_THE_MAIN_THREAD)
        failure = self.settle(self._lost(gone))
        end_process(failure.code, str(failure), bool(failure.speaker))

    def settle(self, error: BaseException) -> Failure:
        """Agrees with the other ranks on the first failure, records it, and says who tells the user.

        Returns:
            What to raise: the same on every rank.
        """
        self._settled.acquire()  # never released: the other thread, if it comes here too, waits for the end of the process
        if not isinstance(error, Refused):
            LOGGER.error("%s", "".join(traceback.format_exception(error)))
        own = self._as_failure(error)
        first = self._first(own, error)
        if (first.speaker or self.launch.rank == 0) and self.directory is not None:
            self.directory.write_exit(first.code, str(first))
        if first.code != REFUSED:
            self.report()
        # From here on the launcher may end this process; the user has been told or will be by the rank that was first.
        self.signals.on_signal = lambda name: None if first.speaker else os._exit(first.code)
        return first

    @property
    def _again(self) -> str:
        return self.directory.again if self.directory is not None else "Run the same command again"

    def _as_failure(self, error: BaseException) -> Failure:
        if isinstance(error, Refused | TrainingFailed | StorageFailed):
            return error
        if self.directory is not None and (failure := explain_write(error, self.directory.path)):
            return failure
        return TrainingFailed(
            f"Training failed on rank {self.launch.rank}: {type(error).__name__}: {_last_line(error)}. "
            f"Tracebacks are in run.dir under logs/. {self._again} to resume."
        )

    def _first(self, own: Failure, error: BaseException) -> Failure:
        if self.store is not None and not isinstance(error, Failure) and (lost := self._wait_for_the_cause(error)):
            own = lost
        own.speaker = True
        if self.store is None or self.launch.world_size == 1:
            return own
        mine = json.dumps({"rank": self.launch.rank, "code": own.code, "sentence": str(own)})
        try:
            first = json.loads(self.store.compare_set("failure", "", mine))
        except RuntimeError:  # the store died with rank 0, which served it
            before = self.directory and self.directory.claim_exit(own.code, str(own))
            return _failure(*before) if before else own
        own.speaker = first["rank"] == self.launch.rank
        return own if own.speaker else _failure(first["code"], first["sentence"])

    def _lost(self, members: Sequence[Member]) -> TrainingFailed:
        names = " and ".join(f"rank {member.rank} (process {member.pid} on {member.host})" for member in members)
        return TrainingFailed(
            f"Training failed: {names} ended without a word. It was killed, perhaps because memory ran out (dmesg tells), or it crashed. "
            f"{self._again} to resume."
        )

    def _wait_for_the_cause(self, error: BaseException) -> TrainingFailed | None:
        """A rank that is gone without having said why; None if it has said so, or if nobody is gone."""
        assert self.store is not None
        deadline = time.monotonic() + (SECONDS_FOR_THE_CAUSE if _from_a_fellow(error) else 0.0)
        while True:
            gone = ended(self.members)  # before looking into the store: who can still speak does so before it ends
            try:
                told = self.store.check(["failure"])
            except RuntimeError:
                told = False
            if told or gone or time.monotonic() >= deadline:
                return self._lost(gone) if gone and not told else None
            time.sleep(0.05)


@contextmanager
def recorded_exit(launch: Launch, directory: RunDirectory | None, signals: Signals) -> Iterator[Ending]:
    """Writes ``exit.json`` however the session ends, agrees on what failed first, and leaves the process group.

    Raises:
        Refused, TrainingFailed, StorageFailed: the first failure of any rank, instead of what was raised on this one.
    """
    ending = Ending(launch, directory, signals)
    signals.on_signal = ending.before_training
    try:
        yield ending
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        first = ending.settle(error)
        if first is error:
            raise
        raise first from error
    signals.on_signal = lambda name: None  # everything is saved, and the end is near
    if launch.rank == 0 and ending.directory is not None:
        ending.directory.write_exit(ending.code, ending.sentence)
        ending.report()
    stop_process_group()


def _failure(code: int, sentence: str) -> Failure:
    failure: Failure = (
        Refused(sentence.split("\n")) if code == REFUSED else {FAILED: TrainingFailed, STORAGE: StorageFailed}[code](sentence)
    )
    failure.speaker = False
    return failure


def _from_a_fellow(error: BaseException) -> bool:
    """Whether this is how another rank's end shows itself."""
    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "NCCL", "onnection", "Broken pipe"))


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1].rstrip(".")
