"""Saving checkpoints over all ranks: what trainer.checkpoint.commit does on one disk, agreed by everybody."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from rich.filesize import decimal
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainer.checkpoint import commit, storage, verify
from trainer.checkpoint.background import Answer, Background
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.files import remove, write_atomically
from trainer.checkpoint.find import STATE
from trainer.checkpoint.manifest import Entry
from trainer.checkpoint.shards import write_shards
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.writing import AtOnce, Writer, writer_beside
from trainer.distributed.agreement import Agreement
from trainer.distributed.log import LOGGER
from trainer.distributed.sharding import local_part, num_copies
from trainer.errors import Refused, StorageFailed
from trainer.state.storage import Part, Shares, plan_shares
from trainer.types import RunState


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written.

    Attributes:
        run_state: what it holds beside tensors.
        partial: where it is written.
    """

    run_state: RunState
    partial: Path


class Checkpointer:
    """Writes the checkpoints of one run. All methods but ``hold`` and ``close`` are collective.

    Args:
        checkpoints: their folder, on a file system that every rank sees.
        agreement: between all ranks.
        config: how many to keep, and whether training goes on while one is written.
        previous: the step of this run's newest checkpoint; None if it has none.
        describe: writes what a checkpoint holds beside tensors and state.json (config, tokenizer ...) into a folder; rank 0, perhaps
            in another thread.
        say: shows a line to the user; rank 0.
        local_ranks: how many of the ranks are on this machine.
    """

    def __init__(
        self,
        checkpoints: Path,
        agreement: Agreement,
        config: CheckpointConfig,
        previous: int | None,
        describe: Callable[[Path], None],
        say: Callable[[str], None],
        local_ranks: int,
    ):
        self._checkpoints = checkpoints
        self._agreement = agreement
        self._keep = config.keep
        self._describe = describe
        self._say = say
        self._local_ranks = local_ranks
        self._previous = previous
        self._needed = 0
        self._background = Background(agreement) if config.background else None
        self._shares: Shares | None = None
        self._staging: Staging | None = None
        self._writer: Writer = AtOnce()
        self._writing: Draft | None = None
        self._said_that_it_waited = False

    def prepare(self, state: dict[str, Tensor], to_come: int) -> int:
        """Plans the saves before training: who writes what, whether the disk has room for them, and the memory of background ones.

        Args:
            state: the engine's.
            to_come: how many checkpoints this session will write.

        Returns:
            Bytes of memory that this rank keeps for saves.

        Raises:
            Refused: it cannot be had.
        """
        ranks = self._agreement.world_size
        shares = self._agreement.gather((crc32(" ".join(state).encode()), sum(_share(tensor, ranks) for tensor in state.values())))
        alike = Counter(names for names, _ in shares)  # ranks of one stage of a pipeline hold the same names
        self._needed = round(sum(share * ranks / alike[names] for names, share in shares))
        if self._agreement.rank == 0:
            there = len(verify.newest(self._checkpoints))
            if warning := storage.room_warning(self._checkpoints, self._needed, there, to_come, self._keep):
                self._say(warning)
        self._shares = plan_shares(state)
        if self._background is None:
            return 0
        files = self._shares.of(state)
        self._writer = writer_beside(self._local_ranks, on_gpu=any(tensor.is_cuda for tensor in state.values()))
        try:
            self._staging = Staging(files)
        except (MemoryError, OSError, RuntimeError) as error:
            size = decimal(sum(part.tensor.nbytes for parts in files.values() for part in parts))
            raise Refused(
                f"checkpoint.background=true keeps a copy of what rank {self._agreement.rank} writes, {size}, in memory, which cannot be had "
                f"({error}): set it to false, or start more ranks."
            ) from error
        return self._staging.nbytes

    def save(self, state: dict[str, Tensor], run_state: RunState) -> Path | None:
        """Writes one checkpoint, or begins to, if that is the background's; what was begun before must have been waited for.

        Returns:
            The checkpoint; None: ``look`` or ``wait`` will return it.

        Raises:
            StorageFailed: on every rank, when any rank could not write; then it does not exist.
        """
        draft = Draft(run_state, self._checkpoints / f"step-{run_state.step}{commit.PARTIAL}")
        assert self._shares is not None
        live = self._shares.of(state)
        if self._background is None:
            self._together(lambda: self._begin(draft), draft)
            shards = self._together(lambda: write_shards(draft.partial, live), draft)
            self._together(lambda: self._publish(draft, shards), draft)
            self._prune(draft)
            return self._published(draft)
        copies: dict[str, list[Part]] = {}
        self._together(lambda: self._stage(draft, live, copies), draft)
        self._writer.begin()
        write = lambda: self._beside_training(lambda: self._write_staged(draft, live, copies), draft)  # noqa: E731
        self._background.start(run_state.step, write, lambda told: self._conclude(draft, told))
        self._writing = draft
        return None

    def look(self) -> Path | None:
        """The checkpoint that was begun, if it has been completed since.

        Raises:
            StorageFailed: on every rank, when any rank could not write it.
        """
        return self._told(self._background.look()) if self._background and self._background.busy else None

    def wait(self, due: int | None = None) -> Path | None:
        """The same, once it is known; None if there is none.

        Args:
            due: the step whose save waits for it, of which the user is told once.
        """
        if self._background is None or not self._background.busy:
            return None
        if (folder := self.look()) or self._writing is None:
            return folder
        self._writer.hurry()
        step, began = self._writing.run_state.step, time.perf_counter()
        folder = self._told(self._background.wait())
        if due is not None and self._agreement.rank == 0 and not self._said_that_it_waited:
            self._said_that_it_waited = True
            self._say(
                f"Checkpoint step-{step} was still being written when step-{due} was due: training waited {time.perf_counter() - began:.1f} s "
                "for it, and will again without another word. Raise checkpoint.every, or point run.dir at a faster disk."
            )
        return folder

    def hold(self) -> None:
        """To be called before an update: lets it wait for what is still being copied out of the tensors that it changes."""
        if self._staging is not None:
            self._staging.hold()

    def close(self) -> None:
        """Gives up what is still being written, if the session ends without having waited for it."""
        if self._background is not None and self._background.busy:
            self._background.abandon()
        elif self._staging is not None:
            self._staging.close()

    def _begin(self, draft: Draft) -> None:
        if self._agreement.rank == 0:
            storage.require_space(self._checkpoints, self._needed)
            commit.begin(self._checkpoints, draft.run_state.step)

    def _stage(self, draft: Draft, live: dict[str, list[Part]], copies: dict[str, list[Part]]) -> None:
        assert self._staging is not None
        self._begin(draft)
        copies.update(self._staging.fill(live))

    def _write_staged(self, draft: Draft, live: dict[str, list[Part]], copies: dict[str, list[Part]]) -> dict[str, Entry]:
        assert self._staging is not None
        self._staging.arrived()
        live.clear()  # what was kept so long; some of them were made for this save
        return write_shards(draft.partial, copies, self._writer)

    def _conclude(self, draft: Draft, told: list[Answer]) -> str:
        """Rank 0's last part of a background save; returns what failed, or nothing."""
        sentence = _first_failure(told)
        if sentence is None:
            shards = [answer["result"] for answer in told]
            sentence = self._beside_training(lambda: self._publish(draft, shards), draft)["failure"]
        if sentence is not None:
            self._discard(draft)
            return str(sentence)
        try:
            self._prune(draft)
        except OSError as error:
            return str(storage.explain_write(error, self._checkpoints) or error)
        return ""

    def _publish(self, draft: Draft, shards: list[dict[str, Entry]]) -> None:
        if self._agreement.rank == 0:
            own = self._write_own_files(draft.partial, draft.run_state)
            commit.commit(draft.partial, {name: entry for part in [*shards, own] for name, entry in part.items()}, draft.run_state.step)

    def _prune(self, draft: Draft) -> None:
        if self._agreement.rank == 0:
            commit.prune(self._checkpoints, self._keep, draft.run_state.step)

    def _told(self, outcome: str | None) -> Path | None:
        if outcome is None or self._writing is None:
            return None
        if outcome:
            raise StorageFailed(outcome)
        draft, self._writing = self._writing, None
        return self._published(draft)

    def _published(self, draft: Draft) -> Path:
        self._previous = draft.run_state.step
        return draft.partial.with_name(f"step-{draft.run_state.step}")

    def _together(self, phase: Callable[[], Any], draft: Draft) -> list[Any]:
        """Runs one phase of a save on every rank; returns every rank's result, or raises on all what failed on the first."""
        answer, failure = self._attempt(phase, draft)
        told = self._agreement.gather(answer)
        sentence = _first_failure(told)
        if sentence is None:
            return [answer["result"] for answer in told]
        if self._agreement.rank == 0:
            self._discard(draft)
        raise failure or StorageFailed(sentence)

    def _attempt(self, phase: Callable[[], Any], draft: Draft) -> tuple[Answer, StorageFailed | None]:
        """Runs a phase; returns what this rank has to tell of it, and what it failed with in words."""
        failure, result = None, None
        try:
            result = phase()
        except (Exception, CheckpointException) as error:  # torch's wraps what storage raised, and is no Exception
            failure = storage.explain(error, self._checkpoints, draft.run_state.step, self._previous, self._needed)
            failure.__cause__ = error
        return {"result": result, "failure": failure and str(failure)}, failure

    def _beside_training(self, phase: Callable[[], Any], draft: Draft) -> Answer:
        """Runs a phase in the background's thread; the main threads will hear its sentence only, so the rest goes into the log."""
        answer, failure = self._attempt(phase, draft)
        if failure is not None:
            LOGGER.error("%s", "".join(traceback.format_exception(failure)))
        return answer

    def _discard(self, draft: Draft) -> None:
        with contextlib.suppress(OSError):
            remove(draft.partial)  # half a checkpoint would keep a full disk full

    def _write_own_files(self, folder: Path, run_state: RunState) -> dict[str, Entry]:
        """Rank 0's files beside the shards; returns their entries."""
        before = {path for path, _ in verify.walk(folder)}
        self._describe(folder)
        write_atomically(folder / STATE, (json.dumps(asdict(run_state), indent=1) + "\n").encode())
        return commit.describe_files(folder, [path for path, _ in verify.walk(folder) if path not in before])


def _first_failure(told: list[Answer]) -> str | None:
    return next((answer["failure"] for answer in told if answer["failure"]), None)


def _share(tensor: Tensor, ranks: int) -> float:
    """The bytes of a tensor that fall to each of the ``ranks`` that hold it or a part of it."""
    return local_part(tensor).nbytes / num_copies(tensor, ranks)
