"""Saving and finding checkpoints over all ranks: what trainer.checkpoint.commit does on one disk, agreed by everybody."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainer.checkpoint import commit, storage, verify
from trainer.checkpoint.files import remove, write_atomically
from trainer.checkpoint.manifest import Entry
from trainer.checkpoint.shards import write_shards
from trainer.distributed.agreement import Agreement
from trainer.distributed.sharding import local_part, num_copies
from trainer.errors import Refused, StorageFailed
from trainer.state.storage import parts_of
from trainer.types import RunState

STATE = "state.json"


class Checkpointer:
    """Writes and finds the checkpoints of one run. All methods are collective.

    Args:
        checkpoints: their folder, on a file system that every rank sees.
        agreement: between all ranks.
        keep: how many to keep; None: all.
        describe: writes what a checkpoint holds beside tensors and state.json (config, tokenizer ...) into a folder; rank 0.
        say: shows a line to the user; rank 0.
    """

    def __init__(
        self, checkpoints: Path, agreement: Agreement, keep: int | None, describe: Callable[[Path], None], say: Callable[[str], None]
    ):
        self._checkpoints = checkpoints
        self._agreement = agreement
        self._keep = keep
        self._describe = describe
        self._say = say
        self._previous: int | None = None

    def save(self, state: dict[str, Tensor], run_state: RunState) -> Path:
        """Writes one checkpoint; it exists when this returns, or not at all.

        Raises:
            StorageFailed: on every rank, when any rank could not write.
        """
        step, rank = run_state.step, self._agreement.rank
        ranks = self._agreement.world_size
        shares = self._agreement.gather((crc32(" ".join(state).encode()), sum(_share(tensor, ranks) for tensor in state.values())))
        alike = Counter(names for names, _ in shares)  # ranks of one stage of a pipeline hold the same names
        needed = round(sum(share * ranks / alike[names] for names, share in shares))
        partial = self._checkpoints / f"step-{step}{commit.PARTIAL}"

        def begin() -> None:
            if rank == 0:
                storage.require_space(self._checkpoints, needed)
                commit.begin(self._checkpoints, step)

        def write() -> dict[str, Entry]:
            return write_shards(partial, parts_of(state))

        def publish() -> None:
            if rank == 0:
                own = self._write_own_files(partial, run_state)
                commit.commit(partial, {name: entry for part in [*shards, own] for name, entry in part.items()}, step)

        self._together(begin, step, needed)
        shards = self._together(write, step, needed)
        self._together(publish, step, needed)
        self._previous = step
        if rank == 0:
            commit.prune(self._checkpoints, self._keep, step)
        return self._checkpoints / f"step-{step}"

    def _together(self, phase: Callable[[], Any], step: int, needed: int) -> list[Any]:
        """Runs one phase of a save on every rank; returns every rank's result, or raises on all what failed on the first."""
        failure, result = None, None
        try:
            result = phase()
        except (Exception, CheckpointException) as error:  # torch's wraps what storage raised, and is no Exception
            failure = storage.explain(error, self._checkpoints, step, self._previous, needed)
            failure.__cause__ = error
        said = self._agreement.gather({"result": result, "failure": failure and str(failure)})
        sentence = next((answer["failure"] for answer in said if answer["failure"]), None)
        if sentence is None:
            return [answer["result"] for answer in said]
        if self._agreement.rank == 0:
            with contextlib.suppress(OSError):
                remove(self._checkpoints / f"step-{step}{commit.PARTIAL}")  # half a checkpoint would keep a full disk full
        raise failure or StorageFailed(sentence)

    def _write_own_files(self, folder: Path, run_state: RunState) -> dict[str, Entry]:
        """Rank 0's files beside the shards; returns their entries."""
        before = {path for path, _ in verify.walk(folder)}
        self._describe(folder)
        write_atomically(folder / STATE, (json.dumps(asdict(run_state), indent=1) + "\n").encode())
        return commit.describe_files(folder, [path for path, _ in verify.walk(folder) if path not in before])

    def find(self, resume: str) -> tuple[Path, RunState] | None:
        """The checkpoint to go on from.

        Args:
            resume: ``latest``, ``never``, or a checkpoint folder or run directory to start from when this run has none of its own.

        Returns:
            Its folder and state; None for a fresh start.

        Raises:
            Refused: ``never`` although there is one, or the path given holds none.
            StorageFailed: there are checkpoints and none of them is whole.
        """
        if self._agreement.rank == 0:
            for line in commit.clean(self._checkpoints):
                self._say(line)
        # Rank 0's list, not each rank's own: a network file system may show others what has just been cleaned away.
        own = [self._checkpoints / name for name in self._agreement.from_first([path.name for path in verify.newest(self._checkpoints)])]
        if own and resume == "never":
            raise Refused(
                f"checkpoint.resume=never, but {self._checkpoints} holds a checkpoint: choose another run.dir, or checkpoint.resume=latest to go on."
            )
        if not own and resume in ("latest", "never"):
            return None
        if own and resume != "latest":
            self._mind_own(Path(resume))
        folder, skipped = verify.choose(self._checkpoints, self._check, own) if own else choose(Path(resume), self._check)
        assert folder is not None
        if self._agreement.rank == 0:
            for line in skipped:
                self._say(line)
        state = read_run_state(folder)
        self._previous = state.step if own else None
        return folder, state

    def _mind_own(self, resume: Path) -> None:
        """A path to start from means nothing to a run that has begun: says so, or refuses a step back within the run."""
        if resume.resolve().is_relative_to(self._checkpoints.resolve()):
            raise Refused(
                f"checkpoint.resume={resume} is one of this run's own checkpoints, and a run only goes on from its newest: "
                "to go back to it, give the same path together with another run.dir."
            )
        if self._agreement.rank == 0:
            self._say(f"checkpoint.resume={resume} is not used: this run has checkpoints of its own and goes on from the newest.")

    def _check(self, folder: Path) -> list[str]:
        """Each rank hashes its share of the files; all learn of all problems."""
        share = (self._agreement.rank, self._agreement.world_size)
        return sorted({problem for part in self._agreement.gather(verify.problems(folder, share)) for problem in part})


def choose(source: Path, check: Callable[[Path], list[str]] = verify.problems) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run directory, of its ``checkpoints`` folder, or the checkpoint that ``source`` is itself.

    Returns:
        Its folder, and a sentence for each newer one that was skipped.

    Raises:
        Refused: ``source`` holds no checkpoint.
        StorageFailed: none is whole.
    """
    if verify.step_of(source) is not None and source.is_dir():
        found = check(source)
        if found:
            raise StorageFailed(f"checkpoint {source} cannot be used: " + " ".join(found))
        return source, []
    below = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    folder, skipped = verify.choose(below, check)
    if folder is None:
        raise Refused(f"{source} holds no checkpoint: give a run directory, or a folder checkpoints/step-N inside of one.")
    return folder, skipped


def read_run_state(folder: Path) -> RunState:
    """The run state of a checkpoint that has been verified.

    Raises:
        StorageFailed: it is not what this version writes.
    """
    try:
        return RunState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StorageFailed(f"{folder / STATE} cannot be read ({error}): was it written by another version of isotrain?") from error


def _share(tensor: Tensor, ranks: int) -> float:
    """The bytes of a tensor that fall to each of the ``ranks`` that hold it or a part of it."""
    return local_part(tensor).nbytes / num_copies(tensor, ranks)
