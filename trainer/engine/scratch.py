"""A rank's own folder on a fast disk, for what does not fit into memory; what a killed run left there goes with the next start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "isotrain-"


class Scratch:
    """A fresh folder below ``parent``, which this process alone uses until ``remove``.

    It is locked as long as the process lives. Folders beside it that nobody holds are removed: their runs were killed.

    Args:
        parent: on a disk of this machine; made if it is not there.
    """

    def __init__(self, parent: Path):
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):  # no other rank sees a new folder that is not locked yet
            for left in parent.glob(f"{_PREFIX}*"):
                _remove_if_free(left)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def takes_direct_writes(parent: Path) -> bool:
    """Whether files below ``parent``, or below what there is of it, can be written past the page cache, as DeepSpeed does.

    Raises:
        OSError: no file can be written there.
    """
    while not parent.exists():
        parent = parent.parent
    with tempfile.NamedTemporaryFile(dir=parent) as probe:
        try:
            os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
        except OSError:
            return False
    return True


def _remove_if_free(folder: Path) -> None:
    with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_NB):  # it is in use, or another user's
        shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, wait: int = 0) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | wait)
        yield
    finally:
        os.close(handle)
