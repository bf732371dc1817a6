"""One process builds a folder, the others wait for it: an OS lock decides, a rename completes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import Refused, TrainingFailed

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


def build_once(folder: Path, build: Callable[[Path], None], damage: Callable[[Path], str | None], timeout: float) -> None:
    """Returns when ``folder`` is complete; builds it unless another process does.

    The builder holds an OS lock, which falls free however it ends, so a waiter takes over when it was killed. A failure is told to
    waiters by a file. Beside ``folder`` lie ``NAME.lock``, ``NAME.failed`` and, while it is built, ``NAME.building-PID``.

    Args:
        folder: appears by a rename, complete.
        build: writes the content into the empty folder it is given.
        damage: says what is wrong with an existing folder; None: nothing.
        timeout: seconds to wait for another process.

    Raises:
        Refused: the build failed, here or where it was waited for, or took too long elsewhere.
    """
    failure = folder.with_name(f"{folder.name}.failed")
    seen = _stamp(failure)

    def ready() -> bool:
        if folder.exists() and damage(folder) is None:
            return True
        if _stamp(failure) not in (None, seen):
            raise Refused(failure.read_text(encoding="utf-8").splitlines())
        return False

    with locked(folder.with_name(f"{folder.name}.lock"), timeout, ready) as mine:
        if mine and not ready():
            _build(folder, build, damage, failure)


@contextmanager
def locked(path: Path, timeout: float, ready: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Waits for an exclusive OS lock and holds it for the block; yields whether it is held.

    Args:
        path: the lock file; it stays behind.
        timeout: seconds to wait while another process holds the lock.
        ready: asked before each attempt; True ends the wait without the lock, an exception passes through.

    Raises:
        Refused: the time is over.
    """
    give_up = time.monotonic() + timeout
    with path.open("ab") as handle:
        while not ready():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise Refused(
                        f"Another process has been preparing {path.with_suffix('')} for longer than data.prepare_timeout={timeout:g} seconds. "
                        "Wait for it, end it, or raise data.prepare_timeout."
                    ) from None
                time.sleep(_POLL_SECONDS)
                continue
            try:
                yield True
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)
            return
    yield False


def sync_folder(folder: Path) -> None:
    """Makes the files of ``folder``, at any depth, and their names survive a power cut."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells one writing of a file from the next."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _build(folder: Path, build: Callable[[Path], None], damage: Callable[[Path], str | None], failure: Path) -> None:
    """Builds under the lock: whatever lies here half done was left by a process that is gone."""
    for left in folder.parent.glob(f"{folder.name}.building-*"):
        shutil.rmtree(left)
    if folder.exists():
        logger.warning("The prepared corpus in %s is damaged (%s) and is built again.", folder, damage(folder))
        shutil.rmtree(folder)
    temporary = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    temporary.mkdir()
    try:
        build(temporary)
        sync_folder(temporary)
        temporary.rename(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        refusal = _explain(error, folder)
        _tell_waiters(failure, refusal.problems)
        raise refusal from error
    failure.unlink(missing_ok=True)


def _explain(error: Exception, folder: Path) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, TrainingFailed):  # of a reader that is used while training too; nothing has begun yet
        return Refused(str(error))
    if isinstance(error, OSError):
        return Refused(
            f"The corpus cannot be prepared in {folder.parent}: {error.strerror or error}. Free some space there or set data.cache_dir."
        )
    return Refused(
        f"Preparing the corpus failed: {type(error).__name__}: {error}. Check the data settings (data.path, data.tokenizer.path)."
    )


def _tell_waiters(failure: Path, problems: list[str]) -> None:
    temporary = failure.with_name(f"{failure.name}-{os.getpid()}")
    with suppress(OSError):  # Where nothing can be written, waiters find the lock free and run into the same wall.
        # A record's or a file's name may hold half a character, which no file can.
        temporary.write_text("\n".join(problems), encoding="utf-8", errors="backslashreplace")
        temporary.replace(failure)
