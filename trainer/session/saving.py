"""When a run saves: what its checkpoints hold, in which order, and who is told that there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from trainer.checkpoint.checkpointer import Checkpointer
from trainer.distributed.log import LOGGER
from trainer.protocols import Callback
from trainer.types import RunState


class Saving:
    """What the Trainer saves with (trainer.protocols.Saver).

    Args:
        checkpointer: writes.
        state: gives the engine's live tensors.
        run_state: gives what a checkpoint holds beside them: (step, tokens seen).
        account: notes what the session has spent so far, whenever there is a new checkpoint.
        callbacks: who is told; empty on all ranks but 0.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: Callable[[], dict[str, Tensor]],
        run_state: Callable[[int, int], RunState],
        account: Callable[[], None],
        callbacks: list[Callback],
    ):
        self._checkpointer = checkpointer
        self._state = state
        self._run_state = run_state
        self._account = account
        self._callbacks = callbacks

    def save(self, step: int, tokens_seen: int) -> None:
        """Writes a checkpoint, or lets it be written while training goes on, after the one before it."""
        self._tell(self._checkpointer.wait(due=step))
        self._tell(self._checkpointer.save(self._state(), self._run_state(step, tokens_seen)))

    def look(self) -> None:
        """Hears whether one has been completed since."""
        self._tell(self._checkpointer.look())

    def hold(self) -> None:
        """Keeps an update from what is still being copied."""
        self._checkpointer.hold()

    def finish(self) -> None:
        """Waits until the last one is there."""
        self._tell(self._checkpointer.wait())

    def _tell(self, folder: Path | None) -> None:
        if folder is None:
            return
        LOGGER.info("checkpoint %s", folder)
        self._account()
        for callback in self._callbacks:
            callback.on_save(int(folder.name.removeprefix("step-")), str(folder))
