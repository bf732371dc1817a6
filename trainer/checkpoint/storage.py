"""Room on the disk, and what went wrong with it in plain words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from trainer.errors import StorageFailed

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "Free some space or point run.dir at another disk"),
    errno.EDQUOT: ("your disk quota is used up", "Delete files of yours, ask for more, or point run.dir at another disk"),
    errno.EROFS: ("the file system is mounted read-only", "Have it mounted writable or point run.dir at another disk"),
    errno.EACCES: ("permission is denied", "Give this user write permission there or point run.dir at another folder"),
    errno.EPERM: ("the operation is not permitted", "Give this user write permission there or point run.dir at another folder"),
    errno.EIO: ("the disk reports an input/output error", "Have the disk looked at (dmesg tells) or point run.dir at another one"),
    errno.EFBIG: (
        "the file would exceed the largest allowed size",
        "Raise the limit (ulimit -f unlimited) or point run.dir at another disk",
    ),
}


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write to the disk on which ``folder`` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_space(folder: Path, needed: int) -> None:
    """Refuses a write that cannot fit.

    Args:
        folder: where it will be written.
        needed: bytes to be written.

    Raises:
        OSError: ENOSPC; ``explain`` turns it into words.
    """
    if free_bytes(folder) < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def room_warning(folder: Path, size: int, there: int, to_come: int, keep: int | None) -> str | None:
    """What to say if the checkpoints that a run will hold at once do not fit; None if they do.

    Args:
        folder: of all checkpoints.
        size: bytes of one.
        there: how many lie there already.
        to_come: how many will be written.
        keep: how many stay; None: all. While one is written, those that it replaces are still there.
    """
    more = to_come if keep is None else min(to_come, max(keep - there, 0) + 1)
    needed, free = more * size, free_bytes(folder)
    if needed <= free:
        return None
    why = "all are kept, checkpoint.keep=null" if keep is None else f"checkpoint.keep={keep}, and the one that is being written"
    return (
        f"Warning: {folder} has {decimal(free)} free, and checkpoints will take {decimal(needed)} more ({more} of {decimal(size)}: {why}). "
        "A save that does not fit ends the run: free some space, lower checkpoint.keep, or point run.dir at another disk."
    )


def explain(error: BaseException, folder: Path, step: int, previous: int | None, needed: int | None = None) -> StorageFailed:
    """What a failed save means to the user.

    Args:
        error: what was raised, by this package or, as text inside other exceptions, by torch or safetensors.
        folder: where it was to be written; normally the folder of all checkpoints.
        step: the checkpoint that was being written.
        previous: the step of the newest complete checkpoint; None if there is none.
        needed: bytes of the checkpoint, if known.

    Returns:
        The error to raise from ``error``; ``error`` itself if it says it all already.
    """
    if isinstance(error, StorageFailed):
        return error
    number = next((number for link in _links(error) if (number := _errno(link)) is not None), None)
    cause, advice = _CAUSES.get(number, (f"{type(error).__name__}: {_last_line(error)}", "Put that right"))  # type: ignore[arg-type]
    room = ""
    if number in (errno.ENOSPC, errno.EDQUOT):
        wanted = f"{decimal(needed)} needed, " if needed is not None else ""
        room = f" ({wanted}{decimal(free_bytes(folder))} free)"
    intact = f"Checkpoint step-{previous} is intact." if previous is not None else "There is no earlier checkpoint."
    onward = f"it goes on from step {previous}" if previous is not None else "it starts from the beginning"
    return StorageFailed(
        f"Checkpoint step-{step} could not be written to {folder}: {cause}{room}. {intact} {advice}, then run the same command again: {onward}."
    )


def explain_write(error: BaseException, folder: Path) -> StorageFailed | None:
    """What it means to the user when something beside a checkpoint could not be written; None if ``error`` is something else.

    Args:
        error: what was raised.
        folder: ``run.dir``. Missing permissions are its matter only if the file that lacks them lies in it.
    """
    for link in _links(error):
        if not isinstance(link, OSError) or link.errno not in _CAUSES:
            continue
        inside = link.filename is not None and Path(str(link.filename)).is_relative_to(folder)
        if link.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not inside:
            continue
        cause, advice = _CAUSES[link.errno]
        room = f" ({decimal(free_bytes(folder))} free)" if link.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StorageFailed(
            f"{link.filename if inside else folder} could not be written: {cause}{room}. The newest checkpoint is intact. {advice}, "
            "then run the same command again."
        )
    return None


def _links(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it was raised from or carries per rank (torch's CheckpointException), outermost first."""
    pending, seen = [error], set()
    while pending:
        link = pending.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        failures = getattr(link, "failures", None)
        pending += [wrapped[0] for wrapped in failures.values()] if isinstance(failures, dict) else []
        pending += [other for other in (link.__cause__, link.__context__) if other is not None]


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in _CAUSES:
        return error.errno
    text = str(error)
    return next((number for number in _CAUSES if f"os error {number})" in text or os.strerror(number) in text), None)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1].rstrip(".")
