"""``run.dir``: where a run keeps everything, and the lock that lets only one run at a time write there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from trainer.checkpoint.files import write_atomically
from trainer.errors import Refused, StorageFailed


def fresh(name: str, root: str | Path = "runs") -> Path:
    """Makes a new directory ``root/NAME-YYYYmmdd-HHMMSS``, with a number behind it if two runs start in the same second.

    Raises:
        Refused: ``name`` is not a plain folder name.
        StorageFailed: it cannot be made.
    """
    if not name or not name.isprintable() or "/" in name or name.startswith("."):
        raise Refused(f"run.name={name!r} cannot name a folder: use letters, digits, '-', '_' and '.', and no '.' in front.")
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        path = Path(root) / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            return path
        except OSError as error:
            if not path.is_dir():
                raise _unusable(path, error) from error
            number += 1


class RunDirectory:
    """The files of one run. Only the rank that makes the directory writes to it, but for ``checkpoints`` and its own log.

    Args:
        path: of the directory.
        named: whether the command names it, so that the same command finds it again.
    """

    def __init__(self, path: str | Path, named: bool = True):
        self.path = Path(path)
        self.again = "Run the same command again" + ("" if named else f" with run.dir={quote(str(path))}")
        """What to type to go on; the beginning of a sentence."""
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.passport = self.path / "passport.json"
        self.sessions = self.path / "sessions.jsonl"
        self._lock: BinaryIO | None = None
        self._passport = b""

    def log(self, rank: int) -> Path:
        """Where ``rank`` logs."""
        return self.path / "logs" / f"rank-{rank}.log"

    def create(self) -> None:
        """Makes the directory, readable by this user only, and tries to write to it.

        Raises:
            StorageFailed: a file is in the way, or nothing can be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            self.log(0).parent.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"x" * 4096)
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise _unusable(self.path, error) from error

    def lock(self, patience: float = 2.0) -> None:
        """Takes the directory for this process until it ends or calls ``release``, and removes the last run's ``exit.json``.

        The lock is the operating system's: it ends with its holder, however that dies, and a file left behind is harmless.

        Args:
            patience: seconds to wait for a holder; a run that was just killed needs a moment to die.

        Raises:
            Refused: another run holds it; names that run.
            StorageFailed: the file system cannot lock.
        """
        path = self.path / ".lock"
        try:
            stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
            if not _acquire(stream, patience):
                holder = _holder(stream)
                stream.close()
                raise Refused(f"run.dir={self.path} is in use by another run{holder}: wait for it, stop it, or choose another run.dir.")
            stream.truncate(0)
            stream.write(_json({"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}))
            (self.path / "exit.json").unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(
                f"run.dir={self.path} cannot be locked ({error.strerror or error}): choose one on a file system with locks."
            ) from error
        # A forked loader worker may outlive a killed rank by seconds; with a copy of the descriptor it would go on holding the lock.
        os.register_at_fork(after_in_child=stream.close)
        self._lock = stream
        self.note("opened")

    def release(self) -> None:
        """Gives the directory free before the process ends."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, text: str) -> None:
        """Writes the resolved configuration, YAML, to ``config.yaml``."""
        write_atomically(self.path / "config.yaml", text.encode())

    def write_passport(self, passport: dict[str, Any]) -> None:
        """Writes what was run on what, and what was read back, to ``passport.json``, if it says anything new."""
        text = _json(passport, indent=2)
        if text != self._passport:
            write_atomically(self.passport, text)
            self._passport = text

    def write_derived(self, name: str, content: dict[str, Any]) -> None:
        """Writes what a library underneath was told."""
        write_atomically(self.path / name, _json(content, indent=2))

    def write_exit(self, code: int, sentence: str) -> None:
        """Writes how the run ended to ``exit.json``, if that is still possible: a full disk must not hide the reason."""
        self.note("ended", code=code, sentence=sentence)
        with contextlib.suppress(OSError):
            write_atomically(self.path / "exit.json", _json({"code": code, "sentence": sentence}))

    def note(self, kind: str, **said: Any) -> None:
        """Appends a line to ``sessions.jsonl``, which no resume cuts back, if this process holds the lock; on a full disk it is left out."""
        if self._lock is None:
            return
        line = {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **said}
        with contextlib.suppress(OSError), self.sessions.open("ab", buffering=0) as stream:
            stream.write(_json(line))

    def claim_exit(self, code: int, sentence: str) -> tuple[int, str] | None:
        """Writes how the run ended unless another rank has, and then returns what that one wrote; for ranks that cannot talk any more."""
        path = self.path / "exit.json"
        with contextlib.suppress(OSError, ValueError, KeyError), tempfile.NamedTemporaryFile(dir=self.path, prefix=".exit-") as draft:
            draft.write(_json({"code": code, "sentence": sentence}))
            draft.flush()
            try:
                os.link(draft.name, path)  # it appears whole, and for one of them only
            except FileExistsError:
                first = json.loads(path.read_text(encoding="utf-8"))
                return first["code"], first["sentence"]
        return None


def _acquire(stream: BinaryIO, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _holder(stream: BinaryIO) -> str:
    try:
        holder = json.loads(stream.read(4096))
        return f" (process {holder['pid']} on {holder['host']}, started {holder['started']})"
    except (ValueError, KeyError, TypeError):
        return ""


def _json(value: dict[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _unusable(path: Path, error: OSError) -> StorageFailed:
    blocked = error.filename if isinstance(error, FileExistsError | NotADirectoryError) else None
    if blocked is not None:
        return StorageFailed(f"run.dir={path} cannot be a directory, because {blocked} is not one: remove it or choose another run.dir.")
    return StorageFailed(
        f"run.dir={path} cannot be written to ({error.strerror or error}): choose another run.dir, or make this one writable."
    )
