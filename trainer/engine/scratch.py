"""A rank's own folder on a fast disk, for what does not fit into memory; what a killed run left there goes with the next start."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OURS = ".isotrain-swap"
"""The folder below the user's in which nothing is but these."""


class Scratch:
    """A fresh folder below ``parent``, which this process alone uses until ``remove``, or until it ends.

    It is locked as long as the process lives. Folders beside it that nobody holds are removed: their runs were killed.

    Args:
        parent: on a disk of this machine; made if it is not there.
    """

    def __init__(self, parent: Path):
        remove_left(parent)
        with _locked(parent / _OURS):  # no other rank sees a new folder that is not locked yet
            self.path = Path(tempfile.mkdtemp(dir=parent / _OURS))
            self._lock: int | None = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._owner = os.getpid()
        atexit.register(self.remove)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        if self._lock is None or os.getpid() != self._owner:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
        atexit.unregister(self.remove)


def remove_left(parent: Path) -> None:
    """Removes what killed runs have left below ``parent``, which is made if it is not there."""
    (parent / _OURS).mkdir(parents=True, exist_ok=True)
    with _locked(parent / _OURS):
        for left in (parent / _OURS).iterdir():
            with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_NB):  # it is in use, or another user's
                shutil.rmtree(left)


def takes_direct_writes(folder: Path) -> bool:
    """Whether files in ``folder`` can be written past the page cache, as DeepSpeed does.

    Raises:
        OSError: no file can be written there.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
        except OSError:
            return False
    return True


@contextmanager
def _locked(folder: Path, wait: int = 0) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | wait)
        yield
    finally:
        os.close(handle)
