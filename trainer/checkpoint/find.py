"""Finding the checkpoint to go on from, over all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint import commit, verify
from trainer.distributed.agreement import Agreement
from trainer.errors import Refused, StorageFailed
from trainer.types import RunState

STATE = "state.json"


def find(checkpoints: Path, agreement: Agreement, resume: str, say: Callable[[str], None]) -> tuple[Path, RunState] | None:
    """The checkpoint to go on from. Collective.

    Args:
        checkpoints: the folder of this run's.
        agreement: between all ranks.
        resume: ``latest``, ``never``, or a checkpoint folder or run directory to start from when this run has none of its own.
        say: shows a line to the user; rank 0.

    Returns:
        Its folder and state; None for a fresh start.

    Raises:
        Refused: ``never`` although there is one, or the path given holds none.
        StorageFailed: there are checkpoints and none of them is whole.
    """
    if agreement.rank == 0:
        for line in commit.clean(checkpoints):
            say(line)
    # Rank 0's list, not each rank's own: a network file system may show others what has just been cleaned away.
    own = [checkpoints / name for name in agreement.from_first([path.name for path in verify.newest(checkpoints)])]
    if own and resume == "never":
        raise Refused(
            f"checkpoint.resume=never, but {checkpoints} holds a checkpoint: choose another run.dir, or checkpoint.resume=latest to go on."
        )
    if not own and resume in ("latest", "never"):
        return None
    if own and resume != "latest":
        _mind_own(Path(resume), checkpoints, say if agreement.rank == 0 else lambda line: None)

    def check(folder: Path) -> list[str]:
        """Each rank hashes its share of the files; all learn of all problems."""
        share = (agreement.rank, agreement.world_size)
        return sorted({problem for part in agreement.gather(verify.problems(folder, share)) for problem in part})

    folder, skipped = verify.choose(checkpoints, check, own) if own else choose(Path(resume), check)
    assert folder is not None
    if agreement.rank == 0:
        for line in skipped:
            say(line)
    return folder, read_run_state(folder)


def _mind_own(resume: Path, checkpoints: Path, say: Callable[[str], None]) -> None:
    """A path to start from means nothing to a run that has begun: says so, or refuses a step back within the run."""
    if resume.resolve().is_relative_to(checkpoints.resolve()):
        raise Refused(
            f"checkpoint.resume={resume} is one of this run's own checkpoints, and a run only goes on from its newest: "
            "to go back to it, give the same path together with another run.dir."
        )
    say(f"checkpoint.resume={resume} is not used: this run has checkpoints of its own and goes on from the newest.")


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
