"""What DeepSpeed compiles on first use: said before it begins, once per machine, and never waiting for a build that has died."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.cpp_extension import CUDA_HOME, _get_build_directory

MINUTES = {"pin_memory": 2, "async_io": 5, "quantizer": 5}
"""About how long each takes on two cores."""


def problem(builder: Any) -> str | None:
    """The sentence why one of DeepSpeed's operations cannot be built on this machine, or None.

    Args:
        builder: DeepSpeed's, from deepspeed.ops.op_builder.
    """
    built = f"DeepSpeed's {builder.name}, which this strategy needs, cannot be built here"
    if shutil.which("g++") is None:
        return f"{built}: there is no C++ compiler. Install one: apt-get install g++."
    if torch.cuda.is_available() and CUDA_HOME is None:
        return f"{built}: there is no CUDA toolkit. Install it, or set CUDA_HOME to it."
    if not builder.is_compatible(verbose=False):
        missing = "libaio and its headers are missing: apt-get install libaio-dev." if builder.name == "async_io" else builder.error_log
        return f"{built}: {missing}"
    return None


def load(builder: Any) -> str | None:
    """Builds one of DeepSpeed's operations where that was not done yet, and loads it; the sentence why that failed, or None.

    Torch marks a running build by a file, ``lock``, for which everybody else waits without a word. Whoever builds holds that file open:
    one of this user's that nobody on this machine has open was left by a killed build, and is removed.
    """
    folder = Path(_get_build_directory(builder.name, verbose=False)).resolve()
    try:
        with _own_ninja_first(), _one_at_a_time(folder, builder.name):
            _outwait(folder, builder.name)
            if not (folder / f"{builder.name}.so").exists():
                _say(f"Building DeepSpeed's {builder.name}, once on this machine: about {MINUTES[builder.name]} minutes on two cores.")
            builder.load(verbose=False)
    except Exception as error:  # of compilers, linkers and loaders
        last = str(error).strip().splitlines()[-1:]
        return f"DeepSpeed's {builder.name} could not be built in {folder}: {''.join(last)}. Remove that folder and start again."
    return None


@contextmanager
def _one_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """Holds a lock of our own, which ends with its holder."""
    with (folder / "isotrain.lock").open("w") as handle:
        begun = time.monotonic()
        while not _try_lock(handle):
            begun = _say_once(f"Waiting for another process that builds DeepSpeed's {name}.", begun)
            time.sleep(0.1)
        yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _say_once(sentence: str, begun: float) -> float:
    """Says it after five seconds, for to load what is there takes a moment too; gives the time to go on with."""
    if time.monotonic() < begun + 5:
        return begun
    _say(sentence)
    return math.inf


def _outwait(folder: Path, name: str) -> None:
    """Waits for a build that is going on, as long as anybody works on it."""
    lock, begun = folder / "lock", time.monotonic()
    while seen := _identity(lock):
        if seen.st_uid == os.getuid() and not _in_use(folder, lock) and _identity(lock) == seen:  # else it was given back meanwhile
            _say(f"A build of DeepSpeed's {name} was killed; removed the lock it left, {lock}.")
            lock.unlink(missing_ok=True)
        begun = _say_once(f"Waiting for another process that builds DeepSpeed's {name}; if there is none, remove {lock}.", begun)
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


def _identity(file: Path) -> os.stat_result | None:
    """What tells a file from one that has taken its place; None: there is none."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
