"""One process makes a folder, the others wait; a folder that exists is complete, and records what it was made of."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainer.errors import Refused

logger = logging.getLogger(__name__)

PROGRAM_SECONDS = 1800
"""What pip, apt-get or a conversion may take."""
WAIT_SECONDS = 4 * PROGRAM_SECONDS
"""What another process that makes the same folder may take: it runs up to three programs."""
_POLL_SECONDS = 0.1

RECORD = "recipe.json"
"""Lies in every finished folder: ``source`` (what it was made of) and ``files`` (size and SHA-256 of each)."""


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> Path:
    """Returns ``folder``, which is complete; makes it first unless it exists or another process is making it.

    A complete folder is used without a lock, so it may lie where nothing can be written. Beside it lie ``NAME.lock`` and, while it is
    made, ``NAME.building-PID``. The lock is the operating system's and falls free however its holder ends.

    Args:
        folder: appears by a rename. Its name changes whenever what the recipe writes changes.
        build: writes into the empty folder that it is given, and returns the JSON for ``source`` in the record.

    Raises:
        Refused: it cannot be made, here or by the process that was waited for.
    """
    if _damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(f"{folder.name}.lock"), lambda: _damage(folder) is None) as tell:
            if _damage(folder) is not None:
                try:
                    _build(folder, build)
                except Refused as refusal:
                    tell(refusal.problems)
                    raise
    except OSError as error:
        raise Refused(
            f"{folder} cannot be written: {error.strerror or error}. Free some space there, or set data.cache_dir (data) or XDG_CACHE_HOME (data and models) to a folder that can take it."
        ) from error
    return folder


def run(command: list[str], refuse: Callable[[str], Refused], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program with nothing to read, and keeps what it says.

    Args:
        command: the program and its arguments.
        refuse: makes a refusal of a reason in a few words.
        options: of ``subprocess.run``.

    Raises:
        Refused: it takes longer than ``PROGRAM_SECONDS``; it is ended then.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PROGRAM_SECONDS,
            **options,
        )
    except subprocess.TimeoutExpired:
        raise refuse(f"it was ended after {PROGRAM_SECONDS:,} seconds") from None


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder, in words; None: nothing. Sizes only: the bytes were hashed when they were written."""
    try:
        for name, facts in json.loads((folder / RECORD).read_text())["files"].items():
            if (folder / name).stat().st_size != facts["bytes"]:
                return f"{name} has not the size it was written with"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD} is no record"
    return None


@contextmanager
def _alone(path: Path, ready: Callable[[], bool]) -> Iterator[Callable[[list[str]], None]]:
    """Holds an exclusive OS lock; yields a function by which the holder tells those who wait now why it failed.

    Raises:
        Refused: what a holder that was waited for told, unless it is ``ready`` by now; else eight ranks offline would time out one after
            the other. Or the wait takes too long.
    """
    with path.open("a+", encoding="utf-8", errors="backslashreplace") as handle:

        def tell(problems: list[str]) -> None:
            handle.truncate(0)
            handle.write("\n".join(problems))
            handle.flush()

        seen = os.fstat(handle.fileno()).st_mtime_ns
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is making %s; waiting for it.", path.with_suffix(""))
            _wait(handle, path)
            if os.fstat(handle.fileno()).st_mtime_ns != seen and not ready():  # another may have made it after one that failed
                handle.seek(0)
                raise Refused(handle.read().splitlines()) from None
        yield tell


def _wait(handle: IO[str], path: Path) -> None:
    """Takes the lock when it falls free."""
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise Refused(
                    f"Another process has been making {path.with_suffix('')} for longer than {WAIT_SECONDS:,} seconds. End it and run this again."
                ) from None
        time.sleep(_POLL_SECONDS)


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """Builds under the lock: whatever lies here half done was left by a process that is gone."""
    for left in folder.parent.glob(f"{folder.name}.building-*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    temporary.mkdir()
    try:
        source = build(temporary)
        files = {path.relative_to(temporary).as_posix(): _settle(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
        (temporary / RECORD).write_text(json.dumps({"source": source, "files": files}, indent=2) + "\n")
        _settle(temporary / RECORD)
        if folder.exists():
            logger.warning("%s was damaged (%s) and has been made again.", folder, _damage(folder))
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(path: Path) -> dict[str, Any]:
    """Makes a file survive a power cut; returns its size and SHA-256."""
    with path.open("rb") as content:
        os.fsync(content.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
