"""The second half of a save, beside training: each rank writes in a thread, and rank 0's publishes when all have confirmed.

Threads tell each other through the store, under keys of their own, and never by collectives, which belong to training. They only look into
it, so that no connection is held while one waits. Main threads learn how it went at log steps, by rank 0's word.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from torch.distributed import PrefixStore

from trainer.checkpoint.writing import stand_back
from trainer.distributed.agreement import Agreement

LOOK_SECONDS = 0.02

Answer = dict[str, Any]
"""What a phase of a save came to, as JSON: ``result``, and ``failure``: a sentence or None."""


class Background:
    """Carries out one save at a time.

    Args:
        agreement: between all ranks.
    """

    def __init__(self, agreement: Agreement):
        self._agreement = agreement
        self._store = PrefixStore("checkpoints", agreement.store)
        self._thread: threading.Thread | None = None
        self._told = threading.Event()
        self._abandoned = threading.Event()
        self._outcome: str | None = None

    @property
    def busy(self) -> bool:
        """Whether a save was begun whose end has not been told; the same on every rank."""
        return self._thread is not None

    def start(self, step: int, write: Callable[[], Answer], conclude: Callable[[list[Answer]], str]) -> None:
        """Begins.

        Args:
            step: of the checkpoint.
            write: writes this rank's files; raises nothing.
            conclude: on rank 0, given every rank's answer, publishes; returns what failed, or nothing.
        """
        assert not self.busy
        self._outcome = None
        self._told.clear()
        self._thread = threading.Thread(target=self._run, args=(step, write, conclude), name=f"step-{step}", daemon=True)
        self._thread.start()

    def look(self) -> str | None:
        """What failed, "" if the checkpoint is there, None while it is being written. Collective; waits for no disk."""
        outcome = self._agreement.from_first(self._outcome)
        if outcome is not None and self._thread is not None:
            self._thread.join()
            self._thread = None
        return outcome

    def wait(self) -> str:
        """What failed, or "", once it is known. Collective."""
        assert self._thread is not None
        self._told.wait()
        # It breaks at once if a rank has died, for whose word rank 0's thread would wait for ever; so it would for one that could not tell.
        if any(self._agreement.gather(self._agreement.rank > 0 and bool(self._outcome))):
            self.abandon()
        self._thread.join()
        outcome = self.look()
        assert outcome is not None
        return outcome

    def abandon(self) -> None:
        """Lets go of a save whose ranks will not all confirm; what it leaves is removed at the next start."""
        self._abandoned.set()

    def _run(self, step: int, write: Callable[[], Answer], conclude: Callable[[list[Answer]], str]) -> None:
        outcome = "The thread that was writing it has ended."
        try:
            stand_back()
            outcome = self._told_or_concluded(step, write(), conclude)
        except Exception as error:  # the store's, mostly, if the rank that serves it has died
            outcome = f"Checkpoint step-{step} could not be completed: {type(error).__name__}: {error}"
        finally:
            self._outcome = outcome
            self._told.set()

    def _told_or_concluded(self, step: int, own: Answer, conclude: Callable[[list[Answer]], str]) -> str:
        rank = self._agreement.rank
        if rank > 0:
            self._store.set(f"{step}/{rank}", json.dumps(own))
            return ""
        self._told.set()
        return conclude([own, *(self._hear(f"{step}/{other}") for other in range(1, self._agreement.world_size))])

    def _hear(self, key: str) -> Answer:
        """What another rank tells under ``key``."""
        while not self._store.check([key]):
            if self._abandoned.wait(LOOK_SECONDS):
                raise RuntimeError("not every rank has told that it has written its part")
        answer: Answer = json.loads(self._store.get(key))
        self._store.delete_key(key)
        return answer
