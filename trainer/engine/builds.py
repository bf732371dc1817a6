"""What DeepSpeed compiles on first use: said before it begins, once per machine, and never waiting for a build that has died."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.cpp_extension import _get_build_directory

MINUTES = {"pin_memory": 2, "async_io": 5, "quantizer": 5}
"""About how long each takes on two cores."""


def load(builder: Any) -> None:
    """Builds one of DeepSpeed's operations where that was not done yet, and loads it.

    Torch marks a running build by a file, ``lock``, for which everybody else waits without a word. Whoever builds holds that file open:
    one that nobody on this machine has open was left by a killed build, and is removed.

    Args:
        builder: DeepSpeed's, from deepspeed.ops.op_builder.
    """
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with _own_ninja_first():
        with _one_at_a_time(folder):
            _outwait(folder, builder.name)
            if not (folder / f"{builder.name}.so").exists():
                _say(f"Building DeepSpeed's {builder.name}, once on this machine: about {MINUTES[builder.name]} minutes on two cores.")
                builder.load(verbose=False)
        builder.load(verbose=False)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Holds a lock of our own, which ends with its holder."""
    with (folder / "isotrain.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _outwait(folder: Path, name: str) -> None:
    """Waits for a build that is going on, as long as anybody works on it."""
    lock, begun, said = folder / "lock", time.monotonic(), False
    while seen := _identity(lock):
        if not _in_use(folder, lock) and _identity(lock) == seen:  # else it was given back meanwhile
            _say(f"A build of DeepSpeed's {name} was killed; removed the lock it left, {lock}.")
            lock.unlink(missing_ok=True)
        elif not said and time.monotonic() > begun + 5:  # to load what is there takes a moment too
            _say(f"Waiting for another process that builds DeepSpeed's {name}.")
            said = True
        time.sleep(0.1)


@contextmanager
def _own_ninja_first() -> Iterator[None]:
    """This Python's ninja, called for its name: two versions of it over one cache build everything again in turn."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _in_use(folder: Path, lock: Path) -> bool:
    """Whether a process has ``lock`` open, or works in ``folder`` as a compiler does whose Python was killed."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder or any(link.resolve() == lock for link in (process / "fd").iterdir()):
                return True
        except OSError:  # it has ended, or is another user's
            continue
    return False


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from one that has taken its place; None: there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
